"""Each of the paper's four systems learns: an overfitted model reproduces its images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.diffusion import make_schedule
from model.inference.generate import generate
from model.inference.orders import orders_of, training_masks
from model.inference.requests import Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from model.training.loop import diffusion_draws
from tests.model.conftest import SYSTEMS, context, some_tokens, system_config

PROMPTS = ["red", "green", "blue", "black"]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_overfitted_model_reproduces_its_images(system: str) -> None:
    """The text identifies each of four images, so every token is predictable; no guidance is needed."""
    torch.manual_seed(0)
    config = replace(system_config(system), width=64, head_width=96)
    model, encoder = Fluid(config), HashEncoder(config.text)
    tokens, schedule, rng = some_tokens(config, 4), make_schedule(), torch.Generator().manual_seed(0)
    states, mask = encoder.encode(PROMPTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses, steps = [], 200 if config.categorical else 400
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 30) * (1 - step / steps)
        masked = torch.ones(4, 16, dtype=torch.bool) if config.causal else training_masks(4, 16, rng)
        index, noise = diffusion_draws(config, int(masked.sum()), 12, rng, torch.device("cpu"))
        loss = model.loss(schedule, tokens, masked, model.backbone.encode_text(states, mask), index, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.1 * sum(losses[:20])
    model.eval().requires_grad_(False)
    sampling = Sampling(
        num_inference_steps=16, diffusion_steps=1 if config.categorical else 25, guidance_scale=1.0,
        order=orders_of(config)[-1],
    )  # fmt: skip
    text, null = context(model, encoder, *PROMPTS), context(model, encoder, "")
    found = generate(model, text, null, torch.arange(4), sampling)
    if config.categorical:
        assert (found == tokens).float().mean() > 0.98
    else:
        assert (found - tokens).square().mean() < 0.1  # of a variance of 1
