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


#: The model class of each family's config.
MODELS: dict[type[ModelConfig], Callable[[Any], AutoregressiveModel]] = {
    FluidConfig: Fluid, MarConfig: Mar, NovaConfig: Nova, AmusedConfig: Amused, MeissonicConfig: Meissonic,
    JanusConfig: Janus, LlamagenConfig: Llamagen,
}  # fmt: skip


def config_from_json(raw: dict[str, Any]) -> ModelConfig:
    """Inverse of `ModelConfig.to_json`.

    Raises:
        ConfigError: the family or a key is unknown, or the sizes do not fit together.
    """
    families = {config.family: config for config in MODELS}
    raw = dict(raw)
    family = raw.get("family", "fluid")
    if family not in families:
        raise ConfigError(f"family {family!r} is not known here; this version serves {', '.join(families)}")
    if "tokenizer" in raw:
        raw["tokenizer"] = tokenizer_from_json(raw["tokenizer"])
    for section, cls in (("text", TextConfig), ("ddpm", DdpmConfig)):
        if raw.get(section) is not None:
            raw[section] = build_section(cls, section, raw[section])
    config: ModelConfig = build_section(families[family], "model", raw)
    return config


def build_model(config: ModelConfig) -> AutoregressiveModel:
    """The model with random weights.

    Raises:
        ConfigError: the family needs a library that is not installed.
    """
    return MODELS[type(config)](config)


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
        raise ConfigError(f"tokenizers of kind {config.tokenizer.kind!r} are imported, not trained here")
    return PcaSkipTokenizer(config.tokenizer)


def frozen(module: M, device: torch.device | str) -> M:
    """The module ready for inference: float32, on `device`, without gradients."""
    return module.float().to(device).eval().requires_grad_(False)
