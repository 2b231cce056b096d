"""Tokenizers for training: loading one, and telling whether two make the same tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.checkpoint import load_checkpoint
from model.config import ConfigError, FluidConfig
from model.networks.autoencoders.vqgan_tokenizer import is_vq_model, load_vq_model
from model.networks.factory import AnyTokenizer, new_tokenizer
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.tokenizer_folder import digest, is_tokenizer_folder, load_tokenizer_folder
from model.networks.vq_tokenizer import VqTokenizer
from model.tokenizer_config import read_json
from model.training.reconstruction.start import decoder_names


def load_tokenizer(config: FluidConfig, path: str) -> AnyTokenizer:
    """Load a trained tokenizer, strictly: a .safetensors file, or the folder of a checkpoint, of a VQModel, or of an
    imported autoencoder (`fluid import`).

    Raises:
        ConfigError: there is none, or it has other sizes than `config`.
    """
    if Path(path).is_dir():
        found = find_tokenizer(Path(path))
        if found.config != config.tokenizer:
            raise ConfigError(
                f"the tokenizer of {path} does not fit the preset: it is {found.config}, the preset has "
                f"{config.tokenizer}"
            )
        return found
    if not Path(path).exists():
        raise ConfigError(
            f"no tokenizer at {path}: `make train RECIPE=...` trains one first, or `python -m "
            f"model.training.train_tokenizer --out {Path(path).parent}` with the preset and data of the recipe"
        )
    tokenizer = new_tokenizer(config)
    try:
        tokenizer.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"the tokenizer {path} is damaged, or does not fit the preset ({reason}): train one with "
            "`python -m model.training.train_tokenizer --preset` and the preset's name"
        ) from error
    return tokenizer.eval()


def find_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer in a folder: one that `fluid import` wrote, a VQModel, or a checkpoint's.

    Raises:
        ConfigError, CheckpointError: there is none, or it is damaged.
    """
    if is_tokenizer_folder(folder):
        return load_tokenizer_folder(folder)
    if is_vq_model(folder):
        return load_vq_model(folder)
    raw = folder / "config.json"
    if raw.is_file() and read_json(raw).get("_class_name"):
        raise ConfigError(f"{folder} is a model of diffusers: import it with `fluid import {folder} FOLDER` first")
    return load_checkpoint(folder).tokenizer


def tokens_digest(tokenizer: AnyTokenizer) -> str:
    """SHA-256 of what makes tokens, in bfloat16 as checkpoints keep it: the same after more training of the decoder."""
    decoder = decoder_names(tokenizer) if isinstance(tokenizer, PcaSkipTokenizer | VqTokenizer) else ()
    return digest(tokenizer, without=decoder, dtype=torch.bfloat16)
