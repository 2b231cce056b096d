"""LayerNorm and modulation of one block's input.

    n = LN(h)·(1 + scale) + shift        LN(h) = (h − mean)/√(var + 1e-6) · weight + bias

h is the residual stream, float32; statistics are two-pass float32; n goes into a product, in its dtype. The
modulation's scale already includes the 1 (modulation.py). It is read in place, at row (step − first)·E + e of the
hoisted product.

Sources: MAR's ResBlock (arXiv 2406.11838, models/diffloss.py); two-pass statistics in registers as in Triton's
tutorial 05-layer-norm.

Bytes a row: 4·W (h) + 2·2·W (shift, scale) in, 2·W out; the norm's 8·W stay in the L2 cache. About 12·W FLOPs.
Bound: the bytes, or at few rows the launch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.head_loop import LN_EPS

LN_EPSILON = tl.constexpr(LN_EPS)


def ln_modulate_ref(h: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, scale_plus_one: Tensor) -> Tensor:
    """The definition, float32: (E, W), (W,), (W,), (E, W), (E, W) -> (E, W)."""
    normed = F.layer_norm(h.float(), h.shape[-1:], weight.float(), bias.float(), LN_EPS)
    return normed * scale_plus_one.float() + shift.float()


@triton.jit
def normalise(h, inside, W: tl.constexpr):
    """(m, block) float32 rows, zero outside -> zero mean, unit variance; `inside` masks columns beyond W."""
    mean = tl.sum(h, 1)[:, None] / W
    centred = tl.where(inside, h - mean, 0.0)
    variance = tl.sum(centred * centred, 1)[:, None] / W
    return centred * (1.0 / tl.sqrt(variance + LN_EPSILON))


@triton.jit(do_not_specialize=["n_rows"])  # otherwise some numbers of rows would be compiled separately
def ln_modulate_kernel(
    h_ptr, weight_ptr, bias_ptr, mod_ptr, step_ptr, n_ptr, n_rows, mod_stride,
    W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """mod_ptr: this block's shift in evaluation 0 of the chunk's first step; step_ptr: [step, next, first of chunk]."""
    slot = tl.load(step_ptr) - tl.load(step_ptr + 2)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_W)[None, :]
    inside = cols < W
    mask = (rows < n_rows) & inside
    where = rows.to(tl.int64) * W + cols
    normed = normalise(tl.load(h_ptr + where, mask=mask, other=0.0), inside, W)
    weight = tl.load(weight_ptr + cols, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + cols, mask=inside, other=0.0)
    mod = mod_ptr + (slot * n_rows + rows).to(tl.int64) * mod_stride + cols
    shift = tl.load(mod, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(mod + W, mask=mask, other=0.0).to(tl.float32)
    n = (normed * weight + bias) * scale + shift
    tl.store(n_ptr + where, n.to(n_ptr.dtype.element_ty), mask=mask)


def ln_modulate(h: Tensor, weight: Tensor, bias: Tensor, mod: Tensor, step: Tensor, n: Tensor) -> None:
    """Write n (E, W) of h (E, W) float32, with the modulation that the current step reads.

    Args:
        mod: (slots, E, 2W or more) view that starts at this block's shift; its last stride is 1.
        step: (3,) int32: current step, next one, first step of `mod`.
    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    rows, width = h.shape
    if h.dtype != torch.float32 or n.shape != h.shape or mod.shape[1] != rows or mod.shape[2] < 2 * width:
        raise ValueError(f"h {tuple(h.shape)} {h.dtype}, n {tuple(n.shape)} and mod {tuple(mod.shape)} do not fit")
    if mod.stride(2) != 1 or mod.stride(0) != rows * mod.stride(1) or not h.is_contiguous():
        raise ValueError(f"mod must be rows of one buffer, not of strides {mod.stride()}")
    ln_modulate_kernel[(rows,)](
        h, weight, bias, mod, step, n, rows, mod.stride(1),
        W=width, BLOCK_M=1, BLOCK_W=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
