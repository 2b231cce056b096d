"""How far few steps are from many: both heads on the same tokens, noise and conditions."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from fluid_kernels.head_loop import TRAIN_STEPS
from model.flow import flow_schedule
from model.inference.orders import training_masks
from model.networks.diffusion_head import DiffusionHead
from model.training.few_steps.distill import Distillation
from model.training.trainer import step_generator

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 25, 50)
EXACT = 200  # diffusion steps of the flow head that count as exact
BATCH_STEP = 10_000_000  # of the feed: a batch beyond every training run


@torch.inference_mode()
def sample(head: DiffusionHead, z: Tensor, null: Tensor, noise: Tensor, count: int, guidance: float) -> Tensor:
    """(M, C) tokens by `count` Euler steps from (M, C) noise; z and null (M, D) with text and without."""
    timesteps = flow_schedule(count, head.config.flow_shift).timesteps
    falls = timesteps.diff(prepend=torch.zeros(1, dtype=torch.int64))
    cond, uncond, x = head.embed_condition(z), head.embed_condition(null), noise
    for t, fall in zip(timesteps.flip(0).split(1), falls.flip(0).split(1), strict=True):
        time = head.embed_time(t, fall)
        u = head.denoise(x, time + uncond)
        u = u + guidance * (head.denoise(x, time + cond) - u)
        x = x - fall / TRAIN_STEPS * u
    return x


@torch.inference_mode()
def compare(run: Distillation, student: DiffusionHead, images: int = 32) -> dict[str, dict[str, list[float]]]:
    """Error of both heads by number of steps, without guidance and with a scale of 3.

    Returns:
        Per guidance and head, for each of COUNTS: RMS difference from EXACT steps of the flow head, over the tokens'
        standard deviation.
    """
    model = run.checkpoint.model
    rng = step_generator(run.seed, BATCH_STEP)
    rows, tokens, _ = run.feed.tokens(BATCH_STEP)
    rows, tokens = rows[:images], tokens[:images]
    masked = training_masks(len(rows), run.checkpoint.config.tokens, rng)
    z, null = (
        model.backbone(tokens, ~masked, model.backbone.encode_text(*run.feed.captions.sample(rows, drop, rng)))[masked]  # type: ignore[operator]
        for drop in (0.0, 1.0)
    )
    noise = torch.randn(len(z), run.checkpoint.config.channels, generator=rng)
    found: dict[str, dict[str, list[float]]] = {}
    for guidance in tqdm((1.0, 3.0), desc="errors", unit="scale"):
        exact = sample(run.teacher, z, null, noise, EXACT, guidance)
        found[f"guidance {guidance:g}"] = {
            name: [
                float((sample(head, z, null, noise, count, guidance) - exact).square().mean().sqrt() / exact.std())
                for count in COUNTS
            ]
            for name, head in (("flow", run.teacher), ("mean flow", student))
        }
    return found
