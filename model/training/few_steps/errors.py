"""How far few steps are from many: both heads on the same tokens, noise and conditions."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from fluid_kernels.head_loop import TRAIN_STEPS
from model.flow import flow_schedule
from model.inference.heads.chains import embed_conditions
from model.networks.diffusion_head import DiffusionHead
from model.training.few_steps.distill import Distillation, conditions
from model.training.trainer import step_generator

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 25, 50)
SCALES = (1.0, 3.0, 6.0)
EXACT = 100  # diffusion steps of the flow head that count as exact
BATCH_STEP = 10_000_000  # of the feed: a batch beyond every training run


@torch.inference_mode()
def sample(head: DiffusionHead, z: Tensor, null: Tensor, noise: Tensor, count: int, guidance: float) -> Tensor:
    """(M, C) tokens by `count` steps from (M, C) noise; z and null (M, D) with the prompt and without."""
    timesteps = flow_schedule(count, head.config.flow_shift).timesteps
    falls = timesteps.diff(prepend=torch.zeros(1, dtype=torch.int64))
    guided = torch.arange(0 if guidance == 1 else len(z))
    both = torch.cat([z, null[: len(guided)]])
    x, conditions = noise, embed_conditions(head, both, guided, torch.full((len(z),), guidance))
    for t, fall in zip(timesteps.flip(0).split(1), falls.flip(0).split(1), strict=True):
        u = head.denoise(x.repeat(len(conditions) // len(z), 1), head.embed_time(t, fall) + conditions)
        if len(u) > len(z):
            with_prompt, without = u.chunk(2)
            u = without + guidance * (with_prompt - without)
        x = x - fall / TRAIN_STEPS * u
    return x


@torch.inference_mode()
def compare(run: Distillation, student: DiffusionHead, tokens: int = 512) -> dict[str, dict[str, list[float]]]:
    """Errors of both heads by number of steps and guidance scale.

    Args:
        tokens: how many, all of one batch beyond training.
    Returns:
        Per scale and head, for each of COUNTS: RMS difference from EXACT steps of the flow head, over the standard
        deviation of the tokens.
    """
    rng = step_generator(run.seed, BATCH_STEP)
    z, null = (each[:tokens] for each in conditions(run, BATCH_STEP, rng))
    noise = torch.randn(len(z), run.checkpoint.config.channels, generator=rng)
    found: dict[str, dict[str, list[float]]] = {}
    for guidance in tqdm(SCALES, desc="errors", unit="scale"):
        exact = sample(run.teacher, z, null, noise, EXACT, guidance)
        found[f"guidance {guidance:g}"] = {
            name: [
                float((sample(head, z, null, noise, count, guidance) - exact).square().mean().sqrt() / exact.std())
                for count in COUNTS
            ]
            for name, head in (("flow", run.teacher), ("mean flow", student))
        }
    return found
