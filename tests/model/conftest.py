"""A tiny model with random weights, its encoder and engine, and sprites for scenes; no data, no downloads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import FluidConfig, ModelConfig, VqConfig
from model.data.scenes.facts import Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import STYLES
from model.inference.engine import Engine
from model.inference.prompts import TextPrompts
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.networks.transformer import TextContext
from model.presets import PRESETS
from tests.model.image_set import THINGS_USED, discs


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, in this process and in those that a test starts.

    Several divide a float32 product by its rows, so that the row decides the order of the sums.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


def row_request(
    prompt: str = "a red apple", seed: int = 0, steps: int = 4, diffusion_steps: int = 4, *others: Any, **named: Any
) -> Request:
    """A request with few steps; the other arguments are those of Sampling, in their order or by name."""
    steps, negative = named.pop("num_inference_steps", steps), named.pop("negative_prompt", "")
    sampling = Sampling(steps, diffusion_steps, *others, **named)
    return Request(prompt, seed, sampling, negative_prompt=negative)


SYSTEMS = ("random-continuous", "random-discrete", "raster-continuous", "raster-discrete")


def system_config(system: str) -> FluidConfig:
    """The tiny preset as one of the paper's four systems."""
    order, _, tokens = system.partition("-")
    config = replace(PRESETS["tiny"], order=order)  # type: ignore[arg-type]
    tokenizer = VqConfig(stride=4, channels=4, codebook=32, widths=(8, 8, 8))
    return replace(config, head="categorical", tokenizer=tokenizer) if tokens == "discrete" else config


def random_model(config: FluidConfig) -> Fluid:
    """Random weights everywhere: a zero-initialised head would make every test pass."""
    torch.manual_seed(0)
    model = Fluid(config).eval().requires_grad_(False)
    for name, parameter in model.head.named_parameters():
        if "modulation" in name or name.startswith("out."):
            # Small in raster order: 16 tokens, each from the one before it, would magnify rounding 1000 times.
            torch.nn.init.normal_(parameter, std=0.08 if config.causal else 0.2)
    if config.categorical:  # logits that depend on the input
        torch.nn.init.normal_(model.table, std=0.3)
    return model


def saved(folder: Path, seed: int = 1, preset: str = "tiny", dtype: torch.dtype = torch.float32, **about: Any) -> Path:
    """A checkpoint of a new model, with scores that belong to its weights alone."""
    torch.manual_seed(seed)
    config = PRESETS[preset]
    about = {"name": "tiny", "training": {"steps": 1}, "metrics": {"score": 1.0}} | about
    save_checkpoint(folder, Fluid(config), new_tokenizer(config), about, dtype)
    return folder


def fitted(request: Request, config: ModelConfig) -> Request:
    """The request with those parameters changed that this model has not."""
    sampling = request.sampling
    if config.causal:
        sampling = replace(sampling, num_inference_steps=config.tokens, order="raster")
    if config.categorical:
        sampling = replace(sampling, diffusion_steps=1, diffusion_steps_final=None)
    else:
        order = "random" if sampling.order == "confidence" else sampling.order
        sampling = replace(sampling, top_k=None, top_p=None, order=order)
    return replace(request, sampling=sampling)


def some_tokens(config: ModelConfig, *shape: int) -> torch.Tensor:
    """Random tokens (..., N, C), or (..., N) if discrete."""
    if config.categorical:
        return torch.randint(config.codebook, (*shape, config.tokens))
    return torch.randn(*shape, config.tokens, config.channels)


@pytest.fixture(scope="session")
def tiny() -> Fluid:
    return random_model(PRESETS["tiny"])


@pytest.fixture(scope="session", params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> Fluid:
    """Each of the four systems in turn."""
    return random_model(system_config(request.param))


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
