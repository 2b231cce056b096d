"""Import of aMUSEd, Meissonic, Janus-Pro and LlamaGen: a module for each, with what it recognises and how it converts.

parts            what they share: folders of weights, text encoders, the checkpoint's `about`
vq_names         key names of LlamaGen's image tokenizer, which Janus has too
"""
