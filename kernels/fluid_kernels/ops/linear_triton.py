"""A linear layer with SiLU or GELU in its epilogue.

    y = act(x Wᵀ + b)        products in W's dtype, sums, bias and activation in float32, y in its own dtype

Sources: the tile loop and the grouped order of programs are Triton's tutorial 03-matrix-multiplication; bias and
activation before the store save a pass over y.

Bytes: 2·N·K (W, once) + 2·rows·(K + N); FLOPs 2·rows·N·K. Below about 300 rows an H200 waits for W (4.8 TB/s against
989 TFLOP/s is 206 FLOPs a byte), above them for the tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.configs import RAGGED_WIDEST, Config, backend_of, linear_config, precision

ACTIVATIONS = ("", "silu", "gelu_erf", "gelu_tanh")
GROUP = tl.constexpr(8)  # tiles of rows that walk over W together, so that W's blocks are found in the L2 cache


@triton.jit
def silu(x):
    """x·sigmoid(x), float32."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu_erf(x):
    """x·Φ(x), float32, by Abramowitz and Stegun 7.1.26 for the tail: within 1.5e-7 of erf.

    The library's erf needs so many registers that a tile of 128 × 256 spills.
    """
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * poly * tl.exp(-tl.minimum(z * z, 80.0))  # Φ(−|x|)
    return x * tl.where(x >= 0, 1.0 - tail, tail)


@triton.jit
def gelu_tanh(x):
    """0.5·x·(1 + tanh(u)) = x·sigmoid(2u), u = √(2/π)·(x + 0.044715·x³), float32."""
    exponent = -1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(tl.minimum(exponent, 80.0)))


@triton.jit
def tile_of_program(n_rows, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile (of rows, of columns) that this program computes: grouped, GROUP tiles of rows at a time."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(n_rows, BLOCK_M), tl.cdiv(N, BLOCK_N)
    per_group = GROUP * tiles_n
    first = (program // per_group) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + (program % per_group) % size, (program % per_group) // size


@triton.jit
def product_tile(
    x_ptr, w_ptr, rows, cols, n_rows, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, BLOCK_N) float32 of x Wᵀ; rows (BLOCK_M,) and cols (BLOCK_N,) are indices, masked beyond their ends.

    UPCAST: the interpreter multiplies bfloat16 as if it were integers.
    """
    k = tl.arange(0, BLOCK_K)
    x_tile = x_ptr + rows.to(tl.int64)[:, None] * K + k[None, :]
    w_tile = w_ptr + cols.to(tl.int64)[None, :] * K + k[:, None]  # (k, n): W read as its transpose
    row_in, col_in = (rows < n_rows)[:, None], (cols < N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(x_tile, mask=row_in, other=0.0)
            w = tl.load(w_tile, mask=col_in, other=0.0)
        else:
            x = tl.load(x_tile, mask=row_in & (start + k < K)[None, :], other=0.0)
            w = tl.load(w_tile, mask=col_in & (start + k < K)[:, None], other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    return acc


@triton.jit(do_not_specialize=["n_rows"])
def linear_kernel(
    x_ptr, w_ptr, b_ptr, y_ptr, n_rows, N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of_program(n_rows, N, BLOCK_M, BLOCK_N)
    rows, cols = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    y = product_tile(x_ptr, w_ptr, rows, cols, n_rows, N, K, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, UPCAST)
    y += tl.load(b_ptr + cols, mask=cols < N, other=0.0)[None, :]
    if ACTIVATION == "silu":
        y = silu(y)
    if ACTIVATION == "gelu_erf":
        y = gelu_erf(y)
    if ACTIVATION == "gelu_tanh":
        y = gelu_tanh(y)
    where = rows.to(tl.int64)[:, None] * N + cols[None, :]
    tl.store(y_ptr + where, y.to(y_ptr.dtype.element_ty), mask=(rows < n_rows)[:, None] & (cols < N)[None, :])


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, activation: str = "", config: Config | None = None
) -> None:
    """Write y (rows, N) of x (rows, K), weight (N, K) and a float32 bias (N,).

    Raises:
        ValueError: shapes, layouts or dtypes do not fit together, or the activation is unknown.
    """
    check_product(x, weight, bias, y)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {ACTIVATIONS}")
    (rows, k), n, backend = x.shape, len(weight), backend_of(x.device)
    c = config or linear_config(backend, rows, n, weight.dtype, 256 if k % 64 == 0 else RAGGED_WIDEST)
    linear_kernel[(triton.cdiv(rows, c.m) * triton.cdiv(n, c.n),)](
        x, weight, bias, y, rows, N=n, K=k, ACTIVATION=activation,
        BLOCK_M=c.m, BLOCK_N=c.n, BLOCK_K=c.k, PRECISION=precision(backend), UPCAST=backend == "cpu",
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip


def by_library(weight: Tensor, rows: int, least: int) -> bool:
    """True from `least` rows on, where a GPU has a library to multiply them. In float32 it has no TF32 × 3."""
    on_gpu = weight.device.type == "cuda" and backend_of(weight.device) != "cpu"
    return on_gpu and weight.dtype == torch.bfloat16 and rows >= least


def check_product(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """Raise ValueError where x Wᵀ + b does not fit y; all are read and written as whole contiguous rows."""
    if x.ndim != 2 or weight.shape[1:] != x.shape[1:] or y.shape != (len(x), len(weight)) or len(bias) != len(weight):
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip("xwb", (x, weight, bias), strict=True))
        raise ValueError(f"{shapes} and y {tuple(y.shape)} do not fit")
    if x.dtype != weight.dtype:
        raise ValueError(f"x is {x.dtype} and weight {weight.dtype}; a product has one dtype")
    if not all(t.is_contiguous() for t in (x, weight, y)):
        raise ValueError("x, weight and y must be contiguous")
