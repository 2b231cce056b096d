"""Flow matching for one token: the straight path, its training loss, and Euler steps in the sampling loop's terms.

    x_t = (1 − t) x_0 + t ε          t from 0, the data, to 1, the noise       Lipman et al. 2022 (arXiv 2210.02747)
    u   = ε − x_0                    what the network predicts
    x_s = x_t + (s − t) u            an Euler step from t down to s
    t   = σ k / (K + (σ − 1) k)      step k of K, with shift σ                  Esser et al. 2024 (arXiv 2403.03206)

The loop knows steps of the form x_s = mean_x0 · x_0 + mean_xt · x_t with x_0 = a x_t − b out. With a = 1 and b = t, the
x_0 of a predicted u is x_t − t u, and an Euler step is (1 − s/t) x_0 + (s/t) x_t: so every kernel that samples "v"
samples a flow too, from another table. No noise is added on the way, so temperature
scales the noise that the path starts from (head_loop.tempered).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from model.diffusion import Schedule


def flow_schedule(count: int, shift: float = 1.0) -> Schedule:
    """The table of `count` Euler steps; entry 0 is the last step. Times are multiples of 1/TRAIN_STEPS.

    Raises:
        ValueError: count is outside 1 to TRAIN_STEPS.
    """
    if not 1 <= count <= TRAIN_STEPS:
        raise ValueError(f"{count} diffusion steps requested; there are 1 to {TRAIN_STEPS}")
    share = torch.arange(1, count + 1, dtype=torch.float64) / count
    shifted = shift * share / (1 + (shift - 1) * share)
    timesteps = (shifted * TRAIN_STEPS).round().clamp_min(1).long()  # (K,) ascending, the last is TRAIN_STEPS
    t = timesteps.double() / TRAIN_STEPS
    ratio = torch.cat([torch.zeros(1, dtype=torch.float64), t[:-1]]) / t  # s/t
    zeros = torch.zeros(count)
    return Schedule(
        timesteps=timesteps,
        sqrt_alpha_bar=torch.ones(count),
        sqrt_one_minus=t.float(),
        mean_x0=(1 - ratio).float(),
        mean_xt=ratio.float(),
        log_variance=zeros,
        log_beta=zeros,
        noisy=zeros,
    )


def sample_times(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Training times, int64 from 1 to TRAIN_STEPS: logit-normal, so most are where the path is hard to predict."""
    t = torch.randn(shape, generator=generator, device=generator.device).sigmoid()
    return (t * TRAIN_STEPS).ceil().clamp(1, TRAIN_STEPS).long()


def add_flow_noise(x0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """The point x_t of the path: (M, C), (M,) times of `sample_times`, (M, C) unit noise -> (M, C)."""
    t = (index.float() / TRAIN_STEPS)[:, None]
    return (1 - t) * x0 + t * noise


def flow_loss(out: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """(M,) mean squared error of the predicted u, from (M, C) each."""
    return (out - (noise - x0)).square().mean(-1)
