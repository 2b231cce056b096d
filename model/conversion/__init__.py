"""Conversion of checkpoints published by others.

kinds                 `fluid import`: the list of kinds, and how a source's own is found
import_mar            official MAR weights -> a checkpoint folder
import_nova           a NOVA folder of BAAI -> a checkpoint folder
options               what every conversion is given, and the licence that it names
diffusers_folders     components in diffusers' layout, and AutoencoderKL
foreign_weights       strict reader of others' files; ldm_names: key names of latent diffusion's autoencoder
"""
