"""Convert a KL autoencoder alone, to train a model on its tokens: Stable Diffusion's, SDXL's, MAR's kl16.

    fluid import sd-vae-ft-mse sd-vae                 a folder of diffusers
    fluid import v1-5-pruned.safetensors sd-vae --kind autoencoder      the one in a file of latent diffusion

The folder is for `python -m model.training --tokenizer`; it is no checkpoint, since there is no model in it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model.checkpoint import CheckpointError
from model.conversion.diffusers_folders import component_class, read_autoencoder
from model.conversion.foreign_weights import ForeignWeights, read_foreign_weights, tensor_names
from model.conversion.import_mar import kl_from
from model.conversion.options import Options
from model.networks.autoencoders.kl_tokenizer import KlTokenizer
from model.networks.tokenizer_folder import save_tokenizer

LOOKS_FOR = "a folder with AutoencoderKL's config.json, or a file of latent diffusion's autoencoder"
PREFIX = "first_stage_model."  # of the autoencoder in a whole latent diffusion model
MARK = "decoder.conv_in.weight"
SD_CHANNELS, SD_SCALE = 4, 0.18215  # of Stable Diffusion; a file of latent diffusion does not hold its scale
FLUID_STRIDE = 8  # autoencoders this fine give one token for 2 × 2 latents, as in Fluid
SECTIONS = ("model", "state_dict")
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def recognises(source: Path) -> bool:
    """Return True for an AutoencoderKL alone; a whole latent diffusion model needs --kind."""
    if source.is_dir():
        return component_class(source) == "AutoencoderKL"
    if source.suffix not in SUFFIXES:
        return False
    try:
        names = tensor_names(source, *SECTIONS)
    except CheckpointError:
        return False
    return MARK in names and "quant_conv.weight" in names


def convert(source: Path, folder: Path, options: Options) -> str:
    """Write the tokenizer to `folder`. Returns "": there is nothing to generate with.

    Raises:
        CheckpointError: it is another model, or a name or shape does not fit.
    """
    options.report(f"reading the autoencoder {source}")
    tokenizer = read_autoencoder(source, 1) if source.is_dir() else read_ldm(source)
    if tokenizer.config.stride == FLUID_STRIDE:
        tokenizer.config = replace(tokenizer.config, patch=2)
    save_tokenizer(folder, tokenizer, {"source": source.name})
    c = tokenizer.config
    options.report(f"{c.channels} channels a token, {c.stride} pixels a side, scale {c.scale:g}")
    return ""


def read_ldm(file: Path) -> KlTokenizer:
    """Read the autoencoder of a file in latent diffusion's layout, alone or inside a whole model.

    Raises:
        CheckpointError: there is none, or a name or shape does not fit.
    """
    source = read_foreign_weights(file, *SECTIONS)
    inside = {key.removeprefix(PREFIX): value for key, value in source.tensors().items() if key.startswith(PREFIX)}
    tokenizer = kl_from(ForeignWeights(file, inside) if inside else source)
    if tokenizer.config.latent_channels == SD_CHANNELS:
        tokenizer.config = replace(tokenizer.config, scale=SD_SCALE)
    return tokenizer
