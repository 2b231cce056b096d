"""The end of a residual block: second linear layer, gate and residual in one kernel.

    h += gate · (u Wᵀ + b)        h float32; the product in W's dtype with float32 sums

Sources: MAR's ResBlock (arXiv 2406.11838). Fused epilogue: the product's result never leaves registers, so of the
three passes over (E, W) of a separate gate and residual only h's read and write remain.

Bytes: 2·W² (weights) + E·W·(2 (u) + 2 (gate) + 4 + 4 (h)); FLOPs 2·E·W². Bound: reading the weights, up to a few
hundred evaluations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.configs import Config, backend_of, linear_config, precision
from fluid_kernels.ops.linear_triton import check_product, product_tile, tile_of_program

WIDEST = 128  # columns of a tile: with 256, h and the gate beside the sums spill 1.8 KB


def gated_residual_ref(h: Tensor, u: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """The definition, float32: (E, W), (E, K), (W, K), (W,), (E, W) -> (E, W)."""
    return h.float() + gate.float() * F.linear(u.float(), weight.float(), bias.float())


@triton.jit(do_not_specialize=["n_rows"])
def gated_residual_kernel(
    u_ptr, w_ptr, b_ptr, h_ptr, gate_ptr, step_ptr, n_rows, gate_stride, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """gate_ptr: this block's gate in evaluation 0 of the chunk's first step; step_ptr: [step, next, first of chunk]."""
    slot = tl.load(step_ptr) - tl.load(step_ptr + 2)
    tile_m, tile_n = tile_of_program(n_rows, N, BLOCK_M, BLOCK_N)
    rows, cols = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y = product_tile(u_ptr, w_ptr, rows, cols, n_rows, N, K, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, UPCAST)
    y += tl.load(b_ptr + cols, mask=cols < N, other=0.0)[None, :]
    mask = (rows < n_rows)[:, None] & (cols < N)[None, :]
    gates = gate_ptr + (slot * n_rows + rows).to(tl.int64)[:, None] * gate_stride + cols[None, :]
    gate = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
    where = h_ptr + rows.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(where, tl.load(where, mask=mask, other=0.0) + gate * y, mask=mask)


def gated_residual(
    h: Tensor, u: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, step: Tensor, config: Config | None = None
) -> None:
    """Add the gated product of u (E, W) to h (E, W) float32, in place.

    Args:
        weight: (W, W) in u's dtype. bias: (W,) float32.
        gate: (slots, E, W or more) view that starts at this block's gate; its last stride is 1.
        step: (3,) int32: current step, next one, first step of `gate`.
    Raises:
        ValueError: shapes, layouts or dtypes do not fit together.
    """
    check_product(u, weight, bias, h)
    rows, width = h.shape
    if h.dtype != torch.float32 or gate.shape[1] != rows or gate.shape[2] < width:
        raise ValueError(f"h {tuple(h.shape)} {h.dtype} and gate {tuple(gate.shape)} do not fit")
    if gate.stride(2) != 1 or gate.stride(0) != rows * gate.stride(1):
        raise ValueError(f"gate must be rows of one buffer, not of strides {gate.stride()}")
    backend = backend_of(h.device)
    c = config or linear_config(backend, rows, width, weight.dtype, WIDEST)
    gated_residual_kernel[(triton.cdiv(rows, c.m) * triton.cdiv(width, c.n),)](
        u, weight, bias, h, gate, step, rows, gate.stride(1), N=width, K=u.shape[1],
        BLOCK_M=c.m, BLOCK_N=c.n, BLOCK_K=c.k, PRECISION=precision(backend), UPCAST=backend == "cpu",
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
