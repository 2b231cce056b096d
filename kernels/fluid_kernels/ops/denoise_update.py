"""Guidance, posterior mean and variance, temperature, Philox noise and the update of x in one kernel.

    main  = cond, or uncond + g·(cond − uncond) where a row is guided
    eps:  x0 = (x − b·main)/a      log σ² = share·log β + (1 − share)·log σ²_min     share = (var + 1)/2
    v:    x0 = a·x − b·main        log σ² = log σ²_min                             flow: the same with a = 1, b = t
    x     = mean_x0·clamp(x0) + mean_xt·x + noisy·temperature·exp(log σ²/2)·noise        where the row's chain has begun

with a = √ᾱ and b = √(1 − ᾱ) of the row's own chain at the current step: rows of any schedules share a launch, and rows
that have not begun keep their x. All float32.

Sources: Ho et al. 2020 (arXiv 2006.11239) equations 6 and 7; Nichol & Dhariwal 2021 (2102.09672) equation 15 for the
variance; Salimans & Ho 2022 (2202.00512) for v; noise as in philox_triton.py.

Bytes a row: 4·(O or 2·O) + 4·C in, 4·C out, 60 of the row's own settings; about 300 integer operations per 4 noises.
All of it is a few KiB, so the bound is the launch: one, where separate operations would take more than twenty.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels import philox
from fluid_kernels.head_loop import COEFFICIENTS, update
from fluid_kernels.ops.philox_triton import token_normal

N_COEFFICIENTS = tl.constexpr(len(COEFFICIENTS))
STEP = tl.constexpr(philox.STEP)


def denoise_update_ref(
    out: Tensor, uncond: Tensor, guidance: Tensor, x: Tensor, coefficients: Tensor, noise: Tensor, temperature: Tensor,
    prediction: str, clamp: float,
) -> Tensor:  # fmt: skip
    """The definition, float32: out (E, O), uncond (M,) as in the wrapper, the rest one entry per row -> (M, C)."""
    count, channels = x.shape
    both = out[:count].clone()
    guided = uncond >= 0
    other = out[uncond[guided].long(), :channels]
    both[guided, :channels] = other + guidance[guided, None] * (both[guided, :channels] - other)
    return update(both, x, coefficients, noise, temperature, prediction, clamp)


@triton.jit
def guided_output(out_ptr, row, uncond, guidance, cols, mask, N_OUT: tl.constexpr):
    """(m, c) outputs at `cols`, with guidance where the row has an unconditional half (uncond >= 0)."""
    cond = tl.load(out_ptr + row * N_OUT + cols, mask=mask, other=0.0)
    other = tl.load(out_ptr + uncond * N_OUT + cols, mask=mask & (uncond >= 0), other=0.0)
    return tl.where(uncond >= 0, other + guidance * (cond - other), cond)


@triton.jit
def denoised(main, variance, noise, x, entry, mask, table_ptr, temperature, clamp, EPS: tl.constexpr):
    """(m, c) x of the next step. entry (m, 1): each row's entry in the table of coefficients (see COEFFICIENTS)."""
    at = table_ptr + entry * N_COEFFICIENTS
    a, b = tl.load(at, mask=mask, other=1.0), tl.load(at + 1, mask=mask, other=0.0)
    mean_x0, mean_xt = tl.load(at + 2, mask=mask, other=0.0), tl.load(at + 3, mask=mask, other=0.0)
    low, noisy = tl.load(at + 4, mask=mask, other=0.0), tl.load(at + 6, mask=mask, other=0.0)
    if EPS:
        x0 = (x - b * main) / a
        share = (variance + 1.0) * 0.5
        log_variance = share * tl.load(at + 5, mask=mask, other=0.0) + (1.0 - share) * low
    else:
        x0 = a * x - b * main
        log_variance = low + 0.0 * main
    x0 = tl.where(clamp > 0, tl.minimum(tl.maximum(x0, -clamp), clamp), x0)
    return mean_x0 * x0 + mean_xt * x + noisy * temperature * tl.exp(0.5 * log_variance) * noise


@triton.jit(do_not_specialize=["n_rows", "clamp"])
def denoise_update_kernel(
    out_ptr, x_ptr, step_ptr, uncond_ptr, offset_ptr, start_ptr, guidance_ptr, temperature_ptr, seed_ptr, position_ptr,
    table_ptr, timestep_ptr, n_rows, clamp,
    C: tl.constexpr, N_OUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """step_ptr: [step, next, first of chunk]; the next one is written here and becomes the step in token_in."""
    step = tl.load(step_ptr)
    if tl.program_id(0) == 0:
        tl.store(step_ptr + 1, step - 1)
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    row_in = row < n_rows
    uncond = tl.load(uncond_ptr + row, mask=row_in, other=-1)
    cols = tl.arange(0, BLOCK_C)[None, :]
    begun = row_in & (tl.load(start_ptr + row, mask=row_in, other=-1) >= step)
    mask = begun & (cols < C)
    entry = (tl.load(offset_ptr + row, mask=begun, other=0) + step).to(tl.int64)
    guidance = tl.load(guidance_ptr + row, mask=begun, other=0.0)
    temperature = tl.load(temperature_ptr + row, mask=begun, other=0.0)
    seed = tl.load(seed_ptr + row, mask=begun, other=0)
    position = tl.load(position_ptr + row, mask=begun, other=0)
    timestep = tl.load(timestep_ptr + entry, mask=begun, other=0)
    noise = token_normal(seed, cols * 0 + STEP, position, timestep, cols)
    x_at = x_ptr + row.to(tl.int64) * C + cols
    x = tl.load(x_at, mask=mask, other=0.0)
    main = guided_output(out_ptr, row, uncond, guidance, cols, mask, N_OUT)
    variance = main
    if EPS:
        variance = tl.load(out_ptr + row * N_OUT + C + cols, mask=mask, other=0.0)
    new = denoised(main, variance, noise, x, entry, begun, table_ptr, temperature, clamp, EPS)
    tl.store(x_at, new, mask=mask)


def denoise_update(
    out: Tensor, x: Tensor, step: Tensor, uncond: Tensor, offset: Tensor, start: Tensor, guidance: Tensor,
    temperature: Tensor, seed: Tensor, position: Tensor, table: Tensor, timesteps: Tensor,
    prediction: str, clamp: float,
) -> None:  # fmt: skip
    """Update x (M, C) float32 in place by one step.

    Args:
        out: (E, O) float32.
        step: (3,) int32: current step, next one (written here), first of the chunk.
        uncond: (M,) int32, the evaluation of each row's unconditional half, or −1.
        offset: (M,) int32, entry of each row's chain at index 0 in table and timesteps.
        start: (M,) int32, the index at which each row begins; at larger ones (earlier steps) it keeps its x.
        guidance, temperature: (M,) float32.
        seed: (M,) int64.
        position: (M,) int32.
        table: (T, 7) float32, COEFFICIENTS of all chains' steps.
        timesteps: (T,) int32.
    Raises:
        ValueError: shapes or dtypes do not fit together, or the prediction is unknown.
    """
    count, channels = x.shape
    for name, tensor, dtype in (
        ("uncond", uncond, torch.int32), ("offset", offset, torch.int32), ("start", start, torch.int32),
        ("guidance", guidance, torch.float32), ("temperature", temperature, torch.float32),
        ("seed", seed, torch.int64), ("position", position, torch.int32),
    ):  # fmt: skip
        if tensor.shape != (count,) or tensor.dtype != dtype:
            raise ValueError(f"{name} must be ({count},) {dtype}, not {tuple(tensor.shape)} {tensor.dtype}")
    if table.shape != (len(timesteps), len(COEFFICIENTS)) or timesteps.dtype != torch.int32:
        raise ValueError(f"table {tuple(table.shape)} and timesteps {tuple(timesteps.shape)} do not fit")
    if prediction not in ("eps", "v", "flow") or out.shape[1] != channels * (2 if prediction == "eps" else 1):
        raise ValueError(f"prediction {prediction!r} does not fit {out.shape[1]} outputs of {channels} channels")
    block = 16
    denoise_update_kernel[(triton.cdiv(count, block),)](
        out, x, step, uncond, offset, start, guidance, temperature, seed, position, table, timesteps,
        count, float(clamp),
        C=channels, N_OUT=out.shape[1], EPS=prediction == "eps",
        BLOCK_M=block, BLOCK_C=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip
