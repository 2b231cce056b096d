"""Conversion of checkpoints published by others.

import_mar            `fluid import mar`: official MAR weights -> a checkpoint folder
foreign_weights       strict reader of others' files; ldm_names: key names of latent diffusion's autoencoder
"""
