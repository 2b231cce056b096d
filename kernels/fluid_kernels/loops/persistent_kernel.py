"""The whole sampling loop in one launch: persistent programs, one team of them per tile of rows.

    phase 0                h = x Wᵀ + b of the tile's rows
    every step             for each block:  up    u = silu((LN(h)·scale + shift) Wᵀ + b)
                                            down  h += gate·(u Wᵀ + b), and each row's sums for the next LN
                           finish  final layer, guidance, posterior, noise, x; h = x Wᵀ + b for the next step

Between phases the programs of a team wait for each other: they share the columns of every product. A row belongs to one
tile, so teams never wait for other teams. Only h, u and x (a tile's few rows, in the L2 cache) pass through memory
between phases. LayerNorm's statistics come from sums over BLOCK_N columns that `down` leaves behind, combined in a
fixed order (Chan et al. 1983), so that an image does not depend on the order in which programs arrive.

Why a team and not one program per tile? Counted, not measured, for an H200 (132 SMs at 1.8 GHz; assumed: 64 bytes
per clock and SM from the L2 cache, 115 GB/s, and 5.5 TB/s for all), W = 1024, L = 6, so 12·W² = 12.6 M weights or
25 MB a step:

  one program a tile   reads 25 MB a step by itself: 220 µs, whatever the tile's rows; with all 132 SMs at work the L2
                       cache gives each 42 GB/s: 600 µs for up to 132 tiles. At 64 rows a tile that is 8448 evaluations,
                       which the tensor cores could do in 270 µs. It never beats separate launches at this width.
  a team of 64         reads 0.4 MB each: 3.4 µs a step for all 12 products, plus 13 waits of about 1 µs each and the
                       latency of 13 chains of loads: 25 to 35 µs.
  separate launches    21 of about 2 µs each in a CUDA graph: 40 to 45 µs.

So a tile gets a team, as large as the chip allows: SMs / tiles. A team of one, which never waits, is as good only where
weights are few: at W = 256 a step reads 1.6 MB, 14 µs for one program. With many tiles teams are small, each program
reads more weights and its tile's h again for every BLOCK_N columns, and separate launches win again: by count from
about 256 evaluations at W = 1024.

A program can only wait for programs that run, so the grid is at most the number of SMs and is launched cooperatively.

Sources: grid barriers with release and acquire as in cooperative groups; ops as in the files they are imported from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fluid_kernels.ops.denoise_update import update_rows
from fluid_kernels.ops.linear_triton import silu
from fluid_kernels.ops.ln_modulate import LN_EPSILON, normalise
from fluid_kernels.ops.token_in import project_token

COUNTER_STRIDE = tl.constexpr(32)  # int32 words between the counters of teams: a cache line each


@triton.jit
def team_barrier(counter_ptr, target, team):
    """Wait until the team's programs have arrived `target` times in all; what they wrote before is then visible.

    The counter only grows. Adding 0 compiles to a load with acquire, but only while its result is used: unused, the
    compiler dropped it with its acquire, so the ahead-of-time check looks for both.
    """
    tl.debug_barrier()  # the release below is by one thread: all other threads' stores must come before it
    if team > 1:
        tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
        while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
            pass
        tl.debug_barrier()


@triton.jit
def row_statistics(sums_ptr, slots, mask, W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr):
    """(m, 1) mean and 1/deviation of rows, from the mean and sum of squared deviations of every BLOCK_N columns."""
    block = tl.arange(0, BLOCKS)[None, :]
    inside = mask & (block < W // BLOCK_N)
    at = sums_ptr + (slots * (W // BLOCK_N) + block) * 2
    means, squares = tl.load(at, mask=inside, other=0.0), tl.load(at + 1, mask=inside, other=0.0)
    mean = tl.sum(means, 1)[:, None] / (W // BLOCK_N)
    apart = tl.where(inside, means - mean, 0.0)
    variance = tl.sum(squares + BLOCK_N * apart * apart, 1)[:, None] / W
    return mean, 1.0 / tl.sqrt(variance + LN_EPSILON)


@triton.jit
def up_phase(
    h_ptr, sums_ptr, norm_w_ptr, norm_b_ptr, mod, w_ptr, b_ptr, u_ptr, slots, active, rank, team, width,
    W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCKS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write this program's columns of u. slots, active (m, 1): rows of h and u; mod (m, 1): pointers to their shift."""
    mean, inverse = row_statistics(sums_ptr, slots, active, W, BLOCK_N, BLOCKS)
    for tile in range(rank, W // BLOCK_N, team):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, width, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            h = tl.load(h_ptr + slots * W + k[None, :], mask=active, other=0.0)
            shift = tl.load(mod + k[None, :], mask=active, other=0.0).to(tl.float32)
            scale = tl.load(mod + W + k[None, :], mask=active, other=0.0).to(tl.float32)
            normed = (h - mean) * inverse * tl.load(norm_w_ptr + k)[None, :] + tl.load(norm_b_ptr + k)[None, :]
            n = (normed * scale + shift).to(w_ptr.dtype.element_ty)
            w = tl.load(w_ptr + cols[None, :] * W + k[:, None])
            if UPCAST:
                n, w = n.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(n, w, acc, input_precision=PRECISION)
        u = silu(acc + tl.load(b_ptr + cols)[None, :])
        tl.store(u_ptr + slots * W + cols[None, :], u.to(u_ptr.dtype.element_ty), mask=active)


@triton.jit
def down_phase(
    u_ptr, gate, w_ptr, b_ptr, h_ptr, sums_ptr, slots, active, rank, team, width,
    W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write this program's columns of h, and their sums. gate (m, 1): pointers to each row's gate."""
    for tile in range(rank, W // BLOCK_N, team):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, width, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            u = tl.load(u_ptr + slots * W + k[None, :], mask=active, other=0.0)
            w = tl.load(w_ptr + cols[None, :] * W + k[:, None])
            if UPCAST:
                u, w = u.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(u, w, acc, input_precision=PRECISION)
        acc += tl.load(b_ptr + cols)[None, :]
        where = h_ptr + slots * W + cols[None, :]
        gates = tl.load(gate + cols[None, :], mask=active, other=0.0).to(tl.float32)
        h = tl.load(where, mask=active, other=0.0) + gates * acc
        tl.store(where, h, mask=active)
        mean = tl.sum(h, 1)[:, None] / BLOCK_N
        at = sums_ptr + (slots * (W // BLOCK_N) + tile) * 2
        tl.store(at, mean, mask=active)
        tl.store(at + 1, tl.sum((h - mean) * (h - mean), 1)[:, None], mask=active)


@triton.jit
def project_row(
    x_ptr, row, w_ptr, b_ptr, h_ptr, sums_ptr, slot, other, never, channels,
    W: tl.constexpr, C: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write one row's h and its sums to `slot` and, where it is not −1, to `other`, its unconditional half's slot."""
    cols = tl.arange(0, BLOCK_W) + never * 16
    inside = cols < W
    h = project_token(x_ptr, row, w_ptr, b_ptr, cols, inside, channels, W, C)
    parts = tl.reshape(h, (BLOCK_W // BLOCK_N, BLOCK_N))  # beyond W all zero
    means = tl.sum(parts, 1) / BLOCK_N
    squares = tl.sum((parts - means[:, None]) * (parts - means[:, None]), 1)
    block = tl.arange(0, BLOCK_W // BLOCK_N)
    for half in tl.static_range(2):
        to = slot if half == 0 else other
        tl.store(h_ptr + to * W + cols, h, mask=inside & (to >= 0))
        at = sums_ptr + (to * (W // BLOCK_N) + block) * 2
        tl.store(at, means, mask=(block < W // BLOCK_N) & (to >= 0))
        tl.store(at + 1, squares, mask=(block < W // BLOCK_N) & (to >= 0))


@triton.jit
def output_row(
    h_ptr, slot, mod, w_ptr, b_ptr, out_ptr, never, outputs,
    W: tl.constexpr, N_OUT: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Write the final layer of one evaluation; mod: pointer to its final shift."""
    cols = tl.arange(0, BLOCK_W)[None, :] + never * 16
    inside = cols < W
    normed = normalise(tl.load(h_ptr + slot * W + cols, mask=inside, other=0.0), inside, W)
    shift = tl.load(mod + cols, mask=inside, other=0.0).to(tl.float32)
    n = normed * tl.load(mod + W + cols, mask=inside, other=0.0).to(tl.float32) + shift
    for start in range(0, outputs, BLOCK_O):
        outs = start + tl.arange(0, BLOCK_O)
        mask = (outs < N_OUT)[:, None] & inside
        out = tl.sum(tl.load(w_ptr + outs[:, None] * W + cols, mask=mask, other=0.0) * n, 1)
        tl.store(out_ptr + outs, out + tl.load(b_ptr + outs, mask=outs < N_OUT, other=0.0), mask=outs < N_OUT)


@triton.jit
def finish_row(
    own, slot, step, phase, never, x_ptr, h_ptr, sums_ptr, out_ptr, uncond_ptr, mod_ptr, mod_stride,
    in_w_ptr, in_b_ptr, out_w_ptr, out_b_ptr,
    offset_ptr, start_ptr, guidance_ptr, temperature_ptr, seed_ptr, position_ptr, table_ptr, timestep_ptr, clamp,
    channels, outputs,
    W: tl.constexpr, C: tl.constexpr, N_OUT: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Take one row from h to the next step's h; in phase 0 from x to h. mod_ptr: final shift of evaluation 0."""
    uncond = tl.load(uncond_ptr + own)
    half = slot + ROWS  # of its unconditional evaluation
    if phase > 0:
        mod = mod_ptr + own.to(tl.int64) * mod_stride
        output_row(
            h_ptr, slot, mod, out_w_ptr, out_b_ptr, out_ptr + own * N_OUT, never, outputs, W, N_OUT, BLOCK_W, BLOCK_O
        )
        if uncond >= 0:
            mod = mod_ptr + uncond.to(tl.int64) * mod_stride
            output_row(
                h_ptr, half, mod, out_w_ptr, out_b_ptr, out_ptr + uncond * N_OUT, never, outputs,
                W, N_OUT, BLOCK_W, BLOCK_O,
            )  # fmt: skip
        tl.debug_barrier()  # outputs, and then x, are read by other threads than those that wrote them
        one = own + tl.zeros((1, 1), tl.int32)
        update_rows(
            out_ptr, one, uncond + tl.zeros((1, 1), tl.int32), one >= 0, x_ptr, step,
            offset_ptr, start_ptr, guidance_ptr, temperature_ptr, seed_ptr, position_ptr, one,
            table_ptr, timestep_ptr, clamp, C, N_OUT, BLOCK_C, EPS,
        )  # fmt: skip
        tl.debug_barrier()
    other = tl.where(uncond >= 0, half, -1)
    project_row(x_ptr, own, in_w_ptr, in_b_ptr, h_ptr, sums_ptr, slot, other, never, channels, W, C, BLOCK_W, BLOCK_N)


# Compiling this takes seconds: no argument that changes from call to call may cause a specialisation.
@triton.jit(
    do_not_specialize=[
        "n_rows", "n_evaluations", "team", "width", "channels", "outputs",
        "first_step", "last_step", "first_phase", "last_phase", "clamp",
    ]
)  # fmt: skip
def head_loop_kernel(
    x_ptr, h_ptr, u_ptr, sums_ptr, out_ptr, counter_ptr, uncond_ptr, mod_ptr,
    in_w_ptr, in_b_ptr, norm_w_ptr, norm_b_ptr, up_w_ptr, up_b_ptr, down_w_ptr, down_b_ptr, out_w_ptr, out_b_ptr,
    offset_ptr, start_ptr, guidance_ptr, temperature_ptr, seed_ptr, position_ptr, table_ptr, timestep_ptr,
    n_rows, n_evaluations, mod_stride, team, width, channels, outputs,
    first_step, last_step, first_phase, last_phase, clamp,
    W: tl.constexpr, L: tl.constexpr, C: tl.constexpr, N_OUT: tl.constexpr, EPS: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Run phases first_phase … last_phase − 1 of steps first_step down to last_step, where mod_ptr begins.

    A tile is BLOCK_M slots: BLOCK_M / HALVES rows, then, with HALVES = 2, the unconditional halves of those that have
    one. width, channels and outputs repeat W, C and N_OUT as run-time values: loops that end at a constant are fully
    unrolled, and spill. Slots index h, u and sums; evaluations (a row's own index, or uncond_ptr's) index mod and out.
    """
    ROWS: tl.constexpr = BLOCK_M // HALVES
    tile = tl.program_id(0) // team
    local = tl.arange(0, BLOCK_M)[:, None]
    row = tile * ROWS + local % ROWS
    in_tile = row < n_rows
    evaluation = tl.where(local < ROWS, row, tl.load(uncond_ptr + row, mask=in_tile, other=-1))
    start = tl.load(start_ptr + row, mask=in_tile, other=-1)
    for phase in range(first_phase, last_phase):
        # Always 0, but unknown to the compiler: addresses that depend on it are computed again in each phase. Constant
        # ones would be kept in registers through all phases, and other values spilled for them.
        never = tl.minimum(phase, 0)
        slots, rank = tile * BLOCK_M + local + never, tl.program_id(0) % team + never
        done = tl.maximum(phase - 1, 0)  # phases of steps before this one
        step, kind = first_step - done // (2 * L + 1), done % (2 * L + 1)
        block = kind // 2
        active = in_tile & (evaluation >= 0) & (start >= step)
        slot_of_step = (step - last_step) * n_evaluations
        if (phase == 0) | (kind == 2 * L):
            for i in range(rank, ROWS, team):
                own = tile * ROWS + i
                if (own < n_rows) & ((phase == 0) | (tl.load(start_ptr + own, mask=own < n_rows, other=-1) >= step)):
                    finish_row(
                        own, tile * BLOCK_M + i, step, phase, never, x_ptr, h_ptr, sums_ptr, out_ptr, uncond_ptr,
                        mod_ptr + slot_of_step.to(tl.int64) * mod_stride + 3 * L * W, mod_stride,
                        in_w_ptr, in_b_ptr, out_w_ptr, out_b_ptr, offset_ptr, start_ptr, guidance_ptr, temperature_ptr,
                        seed_ptr, position_ptr, table_ptr, timestep_ptr, clamp, channels, outputs,
                        W, C, N_OUT, EPS, ROWS, BLOCK_N, BLOCK_W, BLOCK_C, BLOCK_O,
                    )  # fmt: skip
        else:
            mod = mod_ptr + (slot_of_step + evaluation).to(tl.int64) * mod_stride + 3 * W * block
            if kind % 2 == 0:
                up_phase(
                    h_ptr, sums_ptr, norm_w_ptr + block * W, norm_b_ptr + block * W, mod, up_w_ptr + block * W * W,
                    up_b_ptr + block * W, u_ptr, slots, active, rank, team, width,
                    W, BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_W // BLOCK_N, PRECISION, UPCAST,
                )  # fmt: skip
            else:
                down_phase(
                    u_ptr, mod + 2 * W, down_w_ptr + block * W * W, down_b_ptr + block * W, h_ptr, sums_ptr, slots,
                    active, rank, team, width, W, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, UPCAST,
                )  # fmt: skip
        if phase + 1 < last_phase:
            team_barrier(counter_ptr + tile * COUNTER_STRIDE, (phase - first_phase + 1) * team, team)
