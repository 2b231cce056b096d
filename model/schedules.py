"""The chain of diffusion steps that a model's head samples through, by its configuration.

NOVA's two: an Euler chain from linearly spaced times, and diffusers' DDPM chain with a fixed variance. Both become
tables of the loop's rule for "v", x_0 = a x_t - b out:

    flow    a = 1        b = t                 t from 1 to 0.001, shifted when the range is found and once more
    eps     a = 1/√ᾱ     b = √(1 - ᾱ)/√ᾱ
    v       a = √ᾱ       b = √(1 - ᾱ)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS
from model.config import DdpmConfig, ModelConfig, NovaConfig
from model.diffusion import Schedule, make_schedule
from model.flow import flow_schedule


def sampling_schedule(config: ModelConfig, count: int) -> Schedule:
    """The chain of `count` steps of a model's diffusion head.

    Raises:
        ValueError: count is outside 1 to TRAIN_STEPS.
    """
    if isinstance(config, NovaConfig):
        if config.ddpm is None:
            return linear_flow_schedule(count, config.flow_shift)
        return ddpm_schedule(count, config.ddpm, config.prediction == "eps")
    return flow_schedule(count, config.flow_shift) if config.prediction == "flow" else make_schedule(count)


def linear_flow_schedule(count: int, shift: float) -> Schedule:
    """Euler steps from linearly spaced times, in float32 as NOVA computes them; the network reads the fractions too."""
    _check(count)
    lowest = np.float32(1 / TRAIN_STEPS)
    lowest = shift * lowest / (1 + (shift - 1) * lowest)
    spaced = np.linspace(TRAIN_STEPS, lowest * TRAIN_STEPS, count, dtype=np.float32) / np.float32(TRAIN_STEPS)
    shifted = (shift * spaced / (1 + (shift - 1) * spaced)).astype(np.float32)[::-1].copy()  # (K,) ascending
    times = torch.from_numpy(shifted * np.float32(TRAIN_STEPS))
    t = torch.from_numpy(shifted).double()
    ratio = torch.cat([torch.zeros(1, dtype=torch.float64), t[:-1]]) / t
    zeros = torch.zeros(count)
    return Schedule(
        timesteps=times.round().long(), sqrt_alpha_bar=torch.ones(count), sqrt_one_minus=t.float(),
        mean_x0=(1 - ratio).float(), mean_xt=ratio.float(), log_variance=zeros, log_beta=zeros, times=times,
        noisy=zeros,
    )  # fmt: skip


def ddpm_schedule(count: int, config: DdpmConfig, eps: bool) -> Schedule:
    """The chain of diffusers' DDPMScheduler. Its step goes down by T // K from wherever it is, whatever the spacing."""
    _check(count)
    timesteps = _timesteps(count, config)  # (K,) ascending
    alpha_bar = torch.cumprod(1 - _betas(config), 0).double()  # (T,)
    now, below = alpha_bar[timesteps], timesteps - TRAIN_STEPS // count
    previous = torch.where(below >= 0, alpha_bar[below.clamp_min(0)], 1.0)
    beta = 1 - now / previous
    variance = ((1 - previous) / (1 - now) * beta).clamp_min(1e-20)
    a, b = now.sqrt(), (1 - now).sqrt()
    log_variance = (variance if config.variance_type == "fixed_small" else beta.clamp_min(1e-20)).log().float()
    return Schedule(
        timesteps=timesteps, sqrt_alpha_bar=(1 / a if eps else a).float(), sqrt_one_minus=(b / a if eps else b).float(),
        mean_x0=(previous.sqrt() * beta / (1 - now)).float(),
        mean_xt=((1 - beta).sqrt() * (1 - previous) / (1 - now)).float(),
        log_variance=log_variance, log_beta=log_variance, noisy=(timesteps > 0).float(),
    )  # fmt: skip


def _check(count: int) -> None:
    if not 1 <= count <= TRAIN_STEPS:
        raise ValueError(f"{count} diffusion steps requested; there are 1 to {TRAIN_STEPS}")


def _timesteps(count: int, config: DdpmConfig) -> Tensor:
    places: np.ndarray
    if config.timestep_spacing == "linspace":
        places = np.linspace(0, TRAIN_STEPS - 1, count).round()
    elif config.timestep_spacing == "leading":
        places = np.arange(count) * (TRAIN_STEPS // count) + config.steps_offset
    else:
        # Of some counts, such as 61, the sum of strides falls short of the end, and there is one place too many.
        places = np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / count)[:count].round()[::-1] - 1
    return torch.from_numpy(places.astype(np.int64)).clamp_max(TRAIN_STEPS - 1)


def _betas(config: DdpmConfig) -> Tensor:
    """(T,) float32, by the formulas of diffusers."""
    first, last = config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        return torch.linspace(first, last, TRAIN_STEPS)
    if config.beta_schedule == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, TRAIN_STEPS) ** 2
    if config.beta_schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, TRAIN_STEPS)) * (last - first) + first

    def kept(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    pairs = [(i / TRAIN_STEPS, (i + 1) / TRAIN_STEPS) for i in range(TRAIN_STEPS)]
    return torch.tensor([min(1 - kept(after) / kept(before), 0.999) for before, after in pairs])
