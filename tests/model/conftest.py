"""A tiny model with random weights, its encoder and engine, and sprites for scenes; no data, no downloads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.data.scenes.facts import Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import STYLES
from model.inference.engine import Engine
from model.inference.prompts import TextPrompts
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from model.networks.transformer import TextContext
from model.presets import PRESETS
from tests.model.image_set import THINGS_USED, discs


def row_request(
    prompt: str = "a red apple", seed: int = 0, steps: int = 4, diffusion_steps: int = 4, *others: Any, **named: Any
) -> Request:
    """A request with few steps; the other arguments are those of Sampling, in their order or by name."""
    steps, negative = named.pop("num_inference_steps", steps), named.pop("negative_prompt", "")
    sampling = Sampling(steps, diffusion_steps, *others, **named)
    return Request(prompt, seed, sampling, negative_prompt=negative)


@pytest.fixture(scope="session")
def tiny() -> Fluid:
    """The tiny preset with random weights everywhere: a zero-initialised head would make every test pass."""
    torch.manual_seed(0)
    model = Fluid(PRESETS["tiny"]).eval().requires_grad_(False)
    for name, parameter in model.head.named_parameters():
        if "modulation" in name or name.startswith("out."):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="session")
def encoder(tiny: Fluid) -> HashEncoder:
    return HashEncoder(tiny.config.text)


@pytest.fixture
def engine(tiny: Fluid, encoder: HashEncoder) -> Engine:
    return Engine(tiny, TextPrompts(tiny, encoder), max_rows=6)


def context(model: Fluid, encoder: HashEncoder, *prompts: str) -> TextContext:
    return model.backbone.encode_text(*encoder.encode(prompts))


def run_alone(engine: Engine, request: Request) -> torch.Tensor:
    """(N, C) finished tokens of one request, alone in the engine."""
    (row,) = engine.admit([request])
    while row not in engine.step():
        pass
    tokens = engine.peek(row)
    engine.release(row)
    return tokens


@pytest.fixture(scope="session")
def sprites() -> Sprites:
    return discs(THINGS_USED)


@pytest.fixture(scope="session")
def grammar(sprites: Sprites) -> Grammar:
    return Grammar(sprites, THINGS_USED, STYLES)
