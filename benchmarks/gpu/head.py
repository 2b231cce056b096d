"""Variants of the head's loop on a device: as others would write it, and as we run it.

    eager      every product of the head in every step, in float32: the method of the released code
    autocast   the same under bfloat16 autocast, which the released evaluation uses (in float16)
    compiled   a bfloat16 step through torch.compile(mode="reduce-overhead"): fused, in CUDA graphs, no
               hand-written kernels
    torch, triton    our loop, see fluid_kernels/heads.py

The first three take their noise from torch's generator, as is usual; ours is counter-based. Given our noise, all
generate the same tokens up to rounding (a test).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import HeadCase, synchronise
from fluid_kernels.head_loop import LN_EPS, guide, initial_noise, update
from fluid_kernels.heads import make_head

OTHERS = ("eager", "autocast", "compiled")
Noise = Callable[[Tensor, int], Tensor]  # x, step index -> (M, C) noise of all rows


def generated(x: Tensor, j: int) -> Tensor:
    """Return noise from torch's generator."""
    return torch.randn_like(x)


def loop_of(variant: str, case: HeadCase, noise: Noise = generated) -> Callable[[], Tensor]:
    """Return a call of the whole loop; `noise` applies to the variants in OTHERS only."""
    if variant == "eager":
        return lambda: _plain(case, noise)
    if variant == "autocast":

        def autocast() -> Tensor:
            with torch.autocast(case.rows.condition.device.type, torch.bfloat16):
                return _plain(case, noise)

        return autocast
    if variant == "compiled":
        return _compiled(case, noise)
    loop = make_head(case.weights, torch.bfloat16, variant)
    return lambda: loop(case.rows, case.chains, case.prediction, case.clamp)


def _plain(case: HeadCase, noise: Noise) -> Tensor:
    """Run one chain for all rows, the batch doubled for guidance as in the released code."""
    rows, chains, channels = case.rows, case.chains, case.weights.channels
    x = initial_noise(rows, chains, channels)
    steps = int(chains.steps[0])
    for j in reversed(range(steps)):
        y = chains.times[0, j] + rows.condition
        out = case.head.denoise(torch.cat([x, x[rows.guided]]), y).float()
        out = guide(out, rows, len(x), len(rows.guided), channels)
        coefficients = chains.coefficients[0, j].expand(len(x), -1)
        x = update(out, x, coefficients, noise(x, j), rows.temperature, case.prediction, case.clamp)
    return x


def _compiled(case: HeadCase, noise: Noise) -> Callable[[], Tensor]:
    w, rows, chains = case.weights, case.rows, case.chains
    half = torch.bfloat16
    matrices = [t.to(half) for t in (w.up, w.down, w.modulation, w.final_modulation)]
    biases = [t.to(half) for t in (w.up_bias, w.down_bias, w.modulation_bias, w.final_modulation_bias)]

    def step(x: Tensor, time_: Tensor, coefficients: Tensor, step_noise: Tensor) -> Tensor:
        (up, down, modulation, last), (up_b, down_b, modulation_b, last_b) = matrices, biases
        y = F.silu(time_ + rows.condition).to(half)
        h = F.linear(torch.cat([x, x[rows.guided]]), w.token_in, w.token_in_bias)
        for i in range(w.depth):
            shift, scale, gate = F.linear(y, modulation[i], modulation_b[i]).chunk(3, -1)
            n = F.layer_norm(h, (w.width,), w.norm_weight[i], w.norm_bias[i], LN_EPS) * (1 + scale) + shift
            h = h + gate * F.linear(F.silu(F.linear(n.to(half), up[i], up_b[i])), down[i], down_b[i])
        shift, scale = F.linear(y, last, last_b).chunk(2, -1)
        out = F.linear(F.layer_norm(h, (w.width,), eps=LN_EPS) * (1 + scale) + shift, w.out, w.out_bias)
        out = guide(out, rows, len(x), len(rows.guided), w.channels)
        return update(out, x, coefficients, step_noise, rows.temperature, case.prediction, case.clamp)

    compiled = torch.compile(step, mode="reduce-overhead", dynamic=False)

    def loop() -> Tensor:
        x = initial_noise(rows, chains, w.channels)
        steps = int(chains.steps[0])
        for j in reversed(range(steps)):
            coefficients = chains.coefficients[0, j].expand(len(x), -1).clone()
            x = compiled(x, chains.times[0, j].clone(), coefficients, noise(x, j)).clone()
        return x

    return loop


def seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median seconds of `rounds` calls after two warm-up calls; each waits for the device."""
    times = []
    for number in range(rounds + 2):
        synchronise(device)
        begin = time.perf_counter()
        work()
        synchronise(device)
        if number >= 2:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)
