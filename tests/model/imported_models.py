"""Tiny models of the imported families of discrete tokens with random weights, and conditioners without encoders."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from model.config import ModelConfig, TextConfig, VqganConfig
from model.discrete_config import AmusedConfig, JanusConfig, LlamagenConfig, MeissonicConfig
from model.inference.conditioners.encoded import EncodedPrompts
from model.inference.conditioners.prefix import JanusPrompts, LlamagenPrompts
from model.inference.prompts import text_room
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.condition import Conditioner
from model.networks.factory import build_model
from model.networks.imported.encoded_text import EncodedText
from model.networks.imported.prefix_causal import Janus, Llamagen
from model.networks.text_encoder import HashEncoder
from tests.model.conversion.published import lively

FAMILIES = ("amused", "meissonic", "janus", "llamagen")
WIDTH = 64  # the narrowest whose layers are packed in bfloat16
VQ = VqganConfig(widths=(8, 8), layers=1, groups=4, latent_channels=4, channels=4, codebook=60)
SIZES: dict[str, Any] = {"image_size": 8, "width": WIDTH, "heads": 2, "tokenizer": VQ}
MASKED: dict[str, Any] = {
    **SIZES, "pooled": WIDTH, "vocabulary": 64, "mask_token": 63, "text": TextConfig("clip", "", WIDTH, 7),
}  # fmt: skip
CONFIGS: dict[str, ModelConfig] = {
    "amused": AmusedConfig(
        **MASKED, halved=True, depth=1, feed_forward=96, embedding=WIDTH, block_width=WIDTH, block_heads=2,
        block_layers=1,
    ),
    "meissonic": MeissonicConfig(**MASKED, double_depth=1, single_depth=1, axes=(8, 12, 12)),
    "janus": JanusConfig(
        **SIZES, depth=2, feed_forward=96, vocabulary=50, image_head=WIDTH, bos_token=0, pad_token=1, boi_token=2,
        text=TextConfig("tokenizer", "", WIDTH, 40),
    ),
    "llamagen": LlamagenConfig(**SIZES, depth=2, feed_forward=96, text=TextConfig("hash", "", 16, 40)),
}  # fmt: skip


class RandomText:
    """In place of CLIP: states that follow from the prompt."""

    def encode(self, prompt: str) -> EncodedText:
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        return EncodedText(torch.randn(1, 7, WIDTH, generator=generator), torch.randn(1, WIDTH, generator=generator))


def words(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
    """In place of a tokenizer: a number for each word."""
    return {"input_ids": [3 + zlib.crc32(word.encode()) % 47 for word in text.split()]}


def imported_model(family: str) -> AutoregressiveModel:
    model = build_model(CONFIGS[family])
    lively(model)
    model.table.mul_(0.3)  # logits that leave a choice under guidance
    return model


def conditioner_of(model: AutoregressiveModel) -> Conditioner:
    if isinstance(model, Janus):
        return JanusPrompts(model, words, text_room)
    if isinstance(model, Llamagen):
        return LlamagenPrompts(model, HashEncoder(model.config.text), text_room)
    return EncodedPrompts(RandomText(), torch.device("cpu"))  # type: ignore[arg-type]
