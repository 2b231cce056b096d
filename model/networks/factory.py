"""Build modules from a configuration: the one place that knows every model family and every image tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from model.config import (
    AnyTokenizerConfig,
    ConfigError,
    DdpmConfig,
    FluidConfig,
    KlConfig,
    MarConfig,
    ModelConfig,
    NovaConfig,
    TextConfig,
    TokenizerConfig,
    VqConfig,
    VqganConfig,
)
from model.discrete_config import AmusedConfig, JanusConfig, LlamagenConfig, MeissonicConfig
from model.networks.autoencoders.kl_tokenizer import KlTokenizer
from model.networks.autoencoders.vqgan_tokenizer import VqganTokenizer
from model.networks.autoregressive_model import AutoregressiveModel, Fluid
from model.networks.imported.amused import Amused
from model.networks.imported.meissonic import Meissonic
from model.networks.imported.nova import Nova
from model.networks.imported.prefix_causal import Janus, Llamagen
from model.networks.mar import Mar
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.vq_tokenizer import VqTokenizer
from model.tokenizer_config import build_section, tokenizer_from_json

AnyTokenizer = PcaSkipTokenizer | KlTokenizer | VqTokenizer | VqganTokenizer
M = TypeVar("M", bound=nn.Module)


#: The classes of each family's sizes and model.
FAMILIES: dict[str, tuple[type[ModelConfig], Callable[[Any], AutoregressiveModel]]] = {
    "fluid": (FluidConfig, Fluid), "mar": (MarConfig, Mar), "nova": (NovaConfig, Nova),
    "amused": (AmusedConfig, Amused), "meissonic": (MeissonicConfig, Meissonic), "janus": (JanusConfig, Janus),
    "llamagen": (LlamagenConfig, Llamagen),
}  # fmt: skip


def config_from_json(raw: dict[str, Any]) -> ModelConfig:
    """Inverse of `ModelConfig.to_json`.

    Raises:
        ConfigError: the family or a key is unknown, a value is of another type, or the sizes do not fit together.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"section 'model' is {raw!r}; it is an object with keys")
    raw = dict(raw)
    family = raw.get("family", "fluid")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ConfigError(f"family {family!r} is not known here; this version serves {', '.join(FAMILIES)}")
    if "tokenizer" in raw:
        raw["tokenizer"] = tokenizer_from_json(raw["tokenizer"])
    for section, cls in (("text", TextConfig), ("ddpm", DdpmConfig)):
        if raw.get(section) is not None:
            raw[section] = build_section(cls, section, raw[section])
    config: ModelConfig = build_section(FAMILIES[family][0], "model", raw)
    return config


def build_model(config: ModelConfig) -> AutoregressiveModel:
    """The model with random weights.

    Raises:
        ConfigError: the family needs a library that is not installed.
    """
    return FAMILIES[config.family][1](config)


def build_tokenizer(config: AnyTokenizerConfig) -> AnyTokenizer:
    """The image tokenizer with random weights.

    Raises:
        ConfigError: the tokenizer needs a library that is not installed.
    """
    if isinstance(config, KlConfig):
        return KlTokenizer(config)
    if isinstance(config, VqConfig):
        return VqTokenizer(config)
    return VqganTokenizer(config) if isinstance(config, VqganConfig) else PcaSkipTokenizer(config)


def new_tokenizer(config: ModelConfig) -> PcaSkipTokenizer | VqTokenizer:
    """The tokenizer of a model to be trained, with random weights.

    Raises:
        ConfigError: tokenizers of this kind are imported, not trained.
    """
    if isinstance(config.tokenizer, VqConfig):
        return VqTokenizer(config.tokenizer, cluster=True)
    if not isinstance(config.tokenizer, TokenizerConfig):
        raise ConfigError(
            f"tokenizers of kind {config.tokenizer.kind!r} are imported (`fluid import`), not trained here"
        )
    return PcaSkipTokenizer(config.tokenizer)


def frozen(module: M, device: torch.device | str) -> M:
    """The module ready for inference: float32, on `device`, without gradients."""
    return module.float().to(device).eval().requires_grad_(False)
