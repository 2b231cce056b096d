"""Diffusion of one token: cosine schedule, training loss, and the posterior that sampling steps through.

    q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I)                          Ho et al. 2020, eq. 4
    ᾱ_t = f(t)/f(0),  f(t) = cos²((t/T + 0.008)/1.008 · π/2)          Nichol & Dhariwal 2021, eq. 17; β ≤ 0.999
    v_t = √ᾱ_t ε − √(1 − ᾱ_t) x_0                                     Salimans & Ho 2022

Tables are computed in float64 and stored in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, repeat

import numpy as np
import torch
from torch import Tensor

from fluid_kernels.head_loop import TRAIN_STEPS


def cosine_alpha_bar(steps: int = TRAIN_STEPS) -> np.ndarray:
    """ᾱ of the whole chain, (T,) float64, with every β capped at 0.999 as in the reference code."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return np.cumprod(1.0 - np.array(betas))


def kept_timesteps(count: int, total: int = TRAIN_STEPS) -> list[int]:
    """The `count` timesteps that sampling visits, ascending: evenly spaced, both ends included; a single one: the last.

    From the first alone, where next to no noise is left, the network would be asked to clean up what is all noise.

    The reference code's rule for one section: stride (T − 1)/(count − 1), summed in floating point, each sum rounded.
    Multiplying instead of adding would differ where a sum falls on a half: 21 steps visit 499, not 500.

    Raises:
        ValueError: count is outside 1 to `total`.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{count} diffusion steps requested; there are 1 to {total}")
    if count == 1:
        return [total - 1]
    stride = (total - 1) / (count - 1)
    return [round(place) for place in accumulate(repeat(stride, count - 1), initial=0.0)]


@dataclass(frozen=True)
class Schedule:
    """A respaced chain of K steps; entry i belongs to the i-th kept timestep, ascending. All tables (K,) float32."""

    timesteps: Tensor  # int64, of the original chain: the network was trained on those
    sqrt_alpha_bar: Tensor
    sqrt_one_minus: Tensor  # √(1 − ᾱ)
    mean_x0: Tensor  # posterior mean = mean_x0 · x_0 + mean_xt · x_t
    mean_xt: Tensor
    log_variance: Tensor  # of the posterior q(x_{t−1} | x_t, x_0); the first is clipped to the second
    log_beta: Tensor
    times: Tensor | None = None  # float, what the network reads instead of `timesteps`
    noisy: Tensor | None = None  # 1 where sampling adds noise; None: everywhere but at the last step

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> Schedule:
        tables = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Schedule(**{name: table.to(device) for name, table in tables.items() if table is not None})


def make_schedule(count: int = TRAIN_STEPS) -> Schedule:
    """The chain respaced to `count` steps; β is recomputed so that ᾱ agrees at the kept timesteps."""
    kept = kept_timesteps(count)
    alpha_bar = cosine_alpha_bar()[kept]
    previous = np.append(1.0, alpha_bar[:-1])
    beta = 1.0 - alpha_bar / previous
    variance = beta * (1.0 - previous) / (1.0 - alpha_bar)
    # At t = 0 the posterior is a point; its logarithm is never used for sampling but must be finite for the loss.
    clipped = np.append(variance[1], variance[1:]) if count > 1 else np.maximum(variance, 1e-20)

    def table(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values)).float()

    return Schedule(
        timesteps=torch.tensor(kept),
        sqrt_alpha_bar=table(np.sqrt(alpha_bar)),
        sqrt_one_minus=table(np.sqrt(1.0 - alpha_bar)),
        mean_x0=table(beta * np.sqrt(previous) / (1.0 - alpha_bar)),
        mean_xt=table((1.0 - previous) * np.sqrt(1.0 - beta) / (1.0 - alpha_bar)),
        log_variance=table(np.log(clipped)),
        log_beta=table(np.log(beta)),
    )


def add_noise(schedule: Schedule, x0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """Sample q(x_t | x_0): (M, C), (M,) chain index, (M, C) unit noise -> (M, C)."""
    return schedule.sqrt_alpha_bar[index, None] * x0 + schedule.sqrt_one_minus[index, None] * noise


def predict_x0(schedule: Schedule, out: Tensor, x: Tensor, index: Tensor, prediction: str) -> Tensor:
    """(M, C) estimate of x_0 from the network's eps or v (M, C) at x_t (M, C). index: (M,) chain index."""
    a, b = schedule.sqrt_alpha_bar[index, None], schedule.sqrt_one_minus[index, None]  # (M, 1)
    return (x - b * out) / a if prediction == "eps" else a * x - b * out


def learned_log_variance(schedule: Schedule, raw: Tensor, index: Tensor) -> Tensor:
    """(M, C) log σ², interpolated between the posterior's and β by the network's raw output (M, C) in about [-1, 1].

    Nichol & Dhariwal 2021, eq. 15.
    """
    low, high = schedule.log_variance[index, None], schedule.log_beta[index, None]  # (M, 1)
    share = (raw + 1) / 2
    return share * high + (1 - share) * low


def training_loss(
    schedule: Schedule, out: Tensor, x0: Tensor, x: Tensor, index: Tensor, noise: Tensor, prediction: str
) -> Tensor:
    """(M,) loss of each token.

    "v": mean squared error on v. "eps": mean squared error on eps plus the variational bound in bits, which trains only
    the variance because its mean is detached (L_hybrid of Nichol & Dhariwal 2021, eq. 16, with λ = 1/T). At t = 0 the
    bound is the density of a Gaussian, not of a discretised one: tokens are continuous.

    Args:
        out: (M, C) v, or (M, 2C) eps and raw variance.
        x0, x, noise: (M, C), with x = add_noise(schedule, x0, index, noise).
        index: (M,) chain index.
    """
    if prediction == "v":
        target = schedule.sqrt_alpha_bar[index, None] * noise - schedule.sqrt_one_minus[index, None] * x0
        return (out - target).square().mean(-1)
    eps, raw = out.chunk(2, -1)
    log_var = learned_log_variance(schedule, raw, index)
    estimate = predict_x0(schedule, eps.detach(), x, index, "eps")
    mean = schedule.mean_x0[index, None] * estimate + schedule.mean_xt[index, None] * x
    true_mean = schedule.mean_x0[index, None] * x0 + schedule.mean_xt[index, None] * x
    true_log_var = schedule.log_variance[index, None]
    kl = 0.5 * (
        log_var - true_log_var - 1
        + torch.exp(true_log_var - log_var) + (true_mean - mean).square() * torch.exp(-log_var)
    )  # fmt: skip
    nll = 0.5 * (math.log(2 * math.pi) + log_var + (x0 - mean).square() * torch.exp(-log_var))
    bound = torch.where(index[:, None] == 0, nll, kl).mean(-1) / math.log(2)
    return (eps - noise).square().mean(-1) + bound
