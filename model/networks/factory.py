"""From a configuration to modules: the one place that knows every family and every image tokenizer."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from model.config import KlConfig, MarConfig, ModelConfig, TokenizerConfig
from model.networks.kl_tokenizer import KlTokenizer
from model.networks.mar import Mar
from model.networks.random_order_model import Fluid, RandomOrderModel
from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.transformer import count_parameters

M = TypeVar("M", bound=nn.Module)


def build_model(config: ModelConfig) -> RandomOrderModel:
    """The model with random weights."""
    return Mar(config) if isinstance(config, MarConfig) else Fluid(config)  # type: ignore[arg-type]


def build_tokenizer(config: TokenizerConfig | KlConfig) -> PcaSkipTokenizer | KlTokenizer:
    """The image tokenizer with random weights.

    Raises:
        ConfigError: it needs a library that is not installed.
    """
    return KlTokenizer(config) if isinstance(config, KlConfig) else PcaSkipTokenizer(config)


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters of a configuration, without allocating them."""
    with torch.device("meta"):
        return count_parameters(build_model(config))


def frozen(module: M, device: torch.device | str) -> M:
    """Ready to draw: float32, on its device, without gradients."""
    return module.float().to(device).eval().requires_grad_(False)
