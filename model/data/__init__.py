"""Training data: where images and captions come from, and the packed form that training reads.

build                 `make data` for single emoji: captions chooses concepts and words them, sources renders them
dataset               the packed image set; contact_sheet: grids of images to look at
build_scenes          `make data` for composed scenes: packs the sprites that the package scenes composes
build_atlas           `make data` for scenes and a breadth of single things, which the package atlas collects
"""
