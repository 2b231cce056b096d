"""Conversion of checkpoints that others published.

import_mar            `fluid import mar`: official MAR weights -> a checkpoint folder
foreign_weights       reads files of other code, strictly; ldm_names: key names of latent diffusion's autoencoder
"""
