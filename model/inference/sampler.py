"""The inner loop: draw packed tokens from the diffusion head. Rows may belong to any pictures.

for each kept timestep, from noise to data:
    out = head(x, t, z_cond) and head(x, t, z_uncond)      both on the same x, as MAR
    out = out_uncond + g · (out_cond − out_uncond)         on eps or v; a learned variance stays the conditional one
    x   = posterior mean + temperature · σ · noise         noise from Philox: seed, position, timestep, channel
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.diffusion import TRAIN_STEPS, Schedule, ancestral_step
from model.networks.diffusion_head import DiffusionHead


@dataclass(frozen=True, slots=True)
class PackedRows:
    """M tokens to draw in one go, each with its own settings.

    z: (M, D) conditioning. z_uncond: (G, D) the same without text, for the tokens that `guided` selects.
    guided: (M,) bool with G True. guidance, temperature: (M, 1). seed, position: (M,) int64.
    """

    z: Tensor
    z_uncond: Tensor
    guided: Tensor
    guidance: Tensor
    temperature: Tensor
    seed: Tensor
    position: Tensor


def draw_tokens(head: DiffusionHead, rows: PackedRows, schedule: Schedule, prediction: str, clamp: float) -> Tensor:
    """Run the whole respaced chain; returns (M, C) tokens. See the module's formula."""
    channels = head.token_in.in_features
    steps = schedule.timesteps
    condition = head.embed_condition(torch.cat([rows.z, rows.z_uncond]))  # (M + G, W), once for all steps
    times = head.embed_time(steps)  # (K, W), once for all tokens
    # All noise of the chain in one go: Philox is a hundred small operations, cheap only when batched.
    noise = normal_ref(rows.seed[:, None], STEP, rows.position[:, None], steps[None, :], channels)  # (M, K, C)
    x = normal_ref(rows.seed, INITIAL, rows.position, torch.full_like(rows.seed, TRAIN_STEPS), channels)
    x, noise = x.to(condition.dtype), noise.to(condition.dtype)
    guided = bool(rows.guided.any())
    for index in range(len(schedule) - 1, -1, -1):
        both = torch.cat([x, x[rows.guided]]) if guided else x
        out = head.denoise(both, times[index] + condition)  # (M + G, C or 2C)
        if guided:
            out = _guide(out, rows, channels)
        x = ancestral_step(schedule, out, x, index, noise[:, index], rows.temperature, prediction, clamp)
    return x


def _guide(out: Tensor, rows: PackedRows, channels: int) -> Tensor:
    """(M + G, ·) -> (M, ·): move the prediction of guided rows away from the unconditional one."""
    count = len(rows.z)
    out, uncond = out[:count], out[count:]
    strength = rows.guidance[rows.guided]
    moved = uncond[:, :channels] + strength * (out[rows.guided, :channels] - uncond[:, :channels])
    result = out.clone()
    result[rows.guided, :channels] = moved
    return result
