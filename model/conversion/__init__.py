"""Conversion of checkpoints published by others.

kinds                 `fluid import`: the list of kinds, and how a source's own is found
import_mar            official MAR weights -> a checkpoint folder
options               what every conversion is given, and the licence that it names
foreign_weights       strict reader of others' files; ldm_names: key names of latent diffusion's autoencoder
"""
