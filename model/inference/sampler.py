"""The inner loop: draw packed tokens from the diffusion head. Rows may belong to any pictures.

for each kept timestep, from noise to data:
    out = head(x, t, z_cond) and head(x, t, z_uncond)      both on the same x, as MAR
    out = out_uncond + g · (out_cond − out_uncond)         on eps or v; a learned variance stays the conditional one
    x   = posterior mean + temperature · σ · noise         noise from Philox: seed, position, timestep, channel
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluid_kernels.head_loop import COEFFICIENTS, Chains
from fluid_kernels.philox import INITIAL, STEP, normal_ref
from model.diffusion import TRAIN_STEPS, Schedule, ancestral_step, make_schedule
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


def make_chains(head: DiffusionHead, counts: Sequence[int]) -> Chains:
    """The schedules of these numbers of steps for fluid_kernels.head_loop, with the head's time embeddings."""
    longest, device = max(counts), head.token_in.weight.device
    timesteps = torch.zeros(len(counts), longest, dtype=torch.int64)
    coefficients = torch.zeros(len(counts), longest, len(COEFFICIENTS))
    for row, count in enumerate(counts):
        schedule = make_schedule(count)
        timesteps[row, :count] = schedule.timesteps
        noisy = (torch.arange(count) > 0).float()
        columns = [*(getattr(schedule, name) for name in COEFFICIENTS[:-1]), noisy]
        coefficients[row, :count] = torch.stack(columns, 1)
    with torch.inference_mode():
        times = head.embed_time(timesteps.flatten().to(device)).unflatten(0, timesteps.shape)  # (S, K, W)
    return Chains(torch.tensor(list(counts)), timesteps, times, coefficients).to(device)


def stack_chains(parts: Sequence[Chains]) -> Chains:
    """Chains of one schedule each, the longest first, under each other."""
    if len(parts) == 1:
        return parts[0]
    longest = parts[0].timesteps.shape[1]

    def padded(tables: list[Tensor]) -> Tensor:
        """(1, K, …) each -> (S, longest, …)"""
        out = tables[0].new_zeros(len(tables), longest, *tables[0].shape[2:])
        for row, table in enumerate(tables):
            out[row, : table.shape[1]] = table[0]
        return out

    return Chains(
        torch.cat([part.steps for part in parts]),
        padded([part.timesteps for part in parts]),
        padded([part.times for part in parts]),
        padded([part.coefficients for part in parts]),
    )
