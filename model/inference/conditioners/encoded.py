"""Conditioner of aMUSEd and Meissonic: CLIP's states and pooled embedding, which the backbone reads as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from fluid_kernels.transfers import send
from model.discrete_config import MaskedConfig
from model.networks.condition import Conditioner
from model.networks.imported.encoded_text import ClipEncoder, EncodedText


class EncodedPrompts(Conditioner):
    """One prompt at a time: in a batch, rounding would make an image depend on other prompts."""

    def __init__(self, encoder: ClipEncoder, device: torch.device):
        self.encoder, self.device = encoder, device

    def __call__(self, prompt: str) -> EncodedText:
        found = self.encoder.encode(prompt)
        return EncodedText(send(found.states, self.device), send(found.pooled, self.device))


def clip_prompts(config: MaskedConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> EncodedPrompts:
    """The conditioner with the encoder that the config names: inside the checkpoint's folder, or elsewhere.

    Raises:
        ConfigError: the encoder is missing, or of other widths.
    """
    encoder = part_of(folder, config.text.name)
    beside = Path(encoder).with_name("tokenizer")
    tokenizer = str(beside) if beside.is_dir() else encoder
    return EncodedPrompts(ClipEncoder(config.text, config.pooled, encoder, tokenizer, dtype).to(device), device)


def part_of(folder: Path, name: str) -> str:
    """The path of a folder inside the checkpoint's, if there is one of this name, else the name as it is."""
    return str(folder / name) if (folder / name).is_dir() else name
