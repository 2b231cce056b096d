"""A sum of the backbone's residual stream and the LayerNorm behind it, in one pass.

    x += delta                                          x float32; delta a product's result, in its dtype
    n = (x − mean)/√(var + 1e-6)·weight + bias          two-pass statistics in float32; n in a product's dtype

Sources: pre-norm blocks as in MAR (arXiv 2406.11838, models/mar.py); two-pass statistics in registers as in Triton's
tutorial 05-layer-norm.

Shapes: x, delta, n (rows, W), one row a program; weight, bias (W,).

Bytes a value, with delta and n in bfloat16: 4 + 2 in, 4 + 2 out, 12 in all. Separate operations move 24: 10 for the
sum, 8 for the normalised float32, 6 for its cast. About 9 FLOPs a value. Bound: the bytes, or at few rows the launch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.head_loop import LN_EPS
from fluid_kernels.ops.ln_modulate import normalise


def add_norm_ref(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, float32: (rows, W), (rows, W) or None, (W,), (W,) -> the new x and n."""
    x = x.float() if delta is None else x.float() + delta.float()
    return x, F.layer_norm(x, x.shape[-1:], weight.float(), bias.float(), LN_EPS)


@triton.jit
def add_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, n_ptr, W: tl.constexpr, BLOCK_W: tl.constexpr, ADD: tl.constexpr
):
    """One row a program. delta_ptr is not read without ADD, and x not written."""
    cols = tl.arange(0, BLOCK_W)[None, :]
    inside = cols < W
    where = tl.program_id(0).to(tl.int64) * W + cols
    x = tl.load(x_ptr + where, mask=inside, other=0.0)
    if ADD:
        x += tl.load(delta_ptr + where, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_ptr + where, x, mask=inside)
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + cols, mask=inside, other=0.0)
    n = normalise(x, inside, W) * weight + bias
    tl.store(n_ptr + where, n.to(n_ptr.dtype.element_ty), mask=inside)


def warps(width: int) -> int:
    """Warps of a program: 16 values of a row for each thread, or 32 of the widest."""
    return 4 if width <= 2048 else 8


def add_norm(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, n: Tensor) -> None:
    """Add delta to x in place, and write n, the normalised sum.

    Args:
        x: (rows, W) float32.
        delta: (rows, W) in any float dtype; None: x itself is normalised.
        weight, bias: (W,) float32.
        n: (rows, W) in any float dtype.
    Raises:
        ValueError: shapes, layouts or dtypes do not fit together.
    """
    rows, width = x.shape
    given = [x, n] if delta is None else [x, n, delta]
    if any(t.shape != x.shape for t in given) or weight.shape != (width,) or bias.shape != (width,):
        shapes = [tuple(t.shape) for t in (*given, weight, bias)]
        raise ValueError(f"x, n, delta, weight and bias of shapes {shapes} do not fit")
    if {x.dtype, weight.dtype, bias.dtype} != {torch.float32} or not all(t.is_contiguous() for t in given):
        raise ValueError("x, weight and bias must be float32; x, delta and n contiguous")
    add_norm_kernel[(rows,)](
        x, x if delta is None else delta, weight, bias, n,
        W=width, BLOCK_W=triton.next_power_of_2(width), ADD=delta is not None, num_warps=warps(width),
    )  # fmt: skip
