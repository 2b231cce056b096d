"""The head's first layer: noisy tokens to the residual stream, once for both halves of guidance.

    h[row] = h[uncond of row] = x[row] Wᵀ + b          all float32

C is 16 to 64, so an output is C multiply-adds; they are a sum over C rather than a tensor-core product, which keeps
float32 exact. As the first kernel of a step it also makes the next step the current one.

Sources: MAR's SimpleMLPAdaLN.input_proj; that both halves share x is forward_with_cfg (arXiv 2406.11838, diffloss.py).

Bytes: 4·M·C + 4·W·C (L2) in, 4·E·W out; FLOPs 2·M·W·C. Bound: the launch at few rows, else writing h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


def token_in_ref(x: Tensor, weight: Tensor, bias: Tensor, uncond: Tensor, evaluations: int) -> Tensor:
    """The definition: (M, C), (W, C), (W,), (M,) index of each row's unconditional half or −1 -> (E, W)."""
    h = F.linear(x.float(), weight.float(), bias.float())
    out = torch.zeros(evaluations, h.shape[1], device=x.device)
    out[: len(h)] = h
    out[uncond[uncond >= 0].long()] = h[uncond >= 0]
    return out


@triton.jit
def token_in_kernel(
    x_ptr, w_ptr, b_ptr, uncond_ptr, step_ptr, h_ptr, W: tl.constexpr, C: tl.constexpr, BLOCK_W: tl.constexpr
):
    """One row per program; w is (C, W), so that loads are contiguous. No other program here reads the step."""
    row = tl.program_id(0).to(tl.int64)
    if row == 0:
        tl.store(step_ptr, tl.load(step_ptr + 1))
    cols = tl.arange(0, BLOCK_W)
    inside = cols < W
    h = tl.load(b_ptr + cols, mask=inside, other=0.0)
    for c in range(C):
        h += tl.load(x_ptr + row * C + c) * tl.load(w_ptr + c * W + cols, mask=inside, other=0.0)
    tl.store(h_ptr + row * W + cols, h, mask=inside)
    uncond = tl.load(uncond_ptr + row).to(tl.int64)
    tl.store(h_ptr + uncond * W + cols, h, mask=inside & (uncond >= 0))


def token_in(x: Tensor, weight: Tensor, bias: Tensor, uncond: Tensor, step: Tensor, h: Tensor) -> None:
    """Write h (E, W) float32 of x (M, C) float32, and advance `step`.

    Args:
        weight: (C, W) float32: the transpose of what torch.nn.Linear stores.
        uncond: (M,) int32, the evaluation of each row's unconditional half, or −1.
        step: (3,) int32: current step, next one, first of the chunk.
    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    rows, channels = x.shape
    width = h.shape[1]
    if weight.shape != (channels, width) or uncond.shape != (rows,) or len(h) < rows:
        raise ValueError(f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and h {tuple(h.shape)} do not fit")
    if {x.dtype, weight.dtype, bias.dtype, h.dtype} != {torch.float32} or uncond.dtype != torch.int32:
        raise ValueError("x, weight, bias and h must be float32, uncond int32")
    token_in_kernel[(rows,)](
        x, weight, bias, uncond, step, h,
        W=width, C=channels, BLOCK_W=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
