"""The data of atlas-128: scenes of a core of things, and a breadth of named things drawn one at a time. No torch.

image_sets            the packages: styles, authors, licences; naming: from an icon's name to a noun
collect               every image of every set, as cut-outs with names
clipart_titles        names of Open Clip Art's drawings, from their titles
hashes                perceptual hashes: duplicates, and near-duplicates across the held-out line
build_atlas           `make data`: fetch, name, cut out, remove duplicates, pack
store                 the packed cut-outs, read from a memory-mapped array
wording               captions of the breadth; variations of any caption
atlas_bank            captioned facts for training: scenes and single things
"""
