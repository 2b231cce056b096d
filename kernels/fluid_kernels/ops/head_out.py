"""The head's last layer: LayerNorm without weights, modulation, and the product with O outputs in one kernel.

    out = (LN(h)·(1 + scale) + shift) Wᵀ + b          all float32 but the modulation

O is 16 to 128, so a row is a matrix-vector product: one program per row keeps the normalised row in registers and
computes BLOCK_O outputs at a time as sums over W. Float32 throughout, because with eps prediction the sampler magnifies
rounding errors made here (loops/torch_loop.py).

Sources: MAR's FinalLayer (arXiv 2406.11838, models/diffloss.py).

Bytes a row: 4·W + 2·2·W in, 4·O out, 4·W·O of weights from the L2 cache (a tenth of what a block's two products read);
FLOPs 2·O·W. Bound: the launch at few rows, else the L2 cache's bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.head_loop import LN_EPS
from fluid_kernels.ops.ln_modulate import normalise


def head_out_ref(h: Tensor, shift: Tensor, scale_plus_one: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition, float32: (E, W) three times, (O, W), (O,) -> (E, O)."""
    n = F.layer_norm(h.float(), h.shape[-1:], eps=LN_EPS) * scale_plus_one.float() + shift.float()
    return F.linear(n, weight.float(), bias.float())


@triton.jit(do_not_specialize=["n_rows"])
def head_out_kernel(
    h_ptr, mod_ptr, step_ptr, w_ptr, b_ptr, out_ptr, n_rows, mod_stride,
    W: tl.constexpr, N_OUT: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One evaluation a program; mod_ptr: the final shift of evaluation 0 of the chunk's first step."""
    slot = tl.load(step_ptr) - tl.load(step_ptr + 2)
    row = tl.program_id(0)
    cols = tl.arange(0, BLOCK_W)[None, :]
    inside = cols < W
    normed = normalise(tl.load(h_ptr + row.to(tl.int64) * W + cols, mask=inside, other=0.0), inside, W)
    mod = mod_ptr + (slot * n_rows + row).to(tl.int64) * mod_stride + cols
    shift = tl.load(mod, mask=inside, other=0.0).to(tl.float32)
    n = normed * tl.load(mod + W, mask=inside, other=0.0).to(tl.float32) + shift  # (1, BLOCK_W)
    for start in range(0, N_OUT, BLOCK_O):
        outs = start + tl.arange(0, BLOCK_O)
        mask = (outs < N_OUT)[:, None] & inside
        out = tl.sum(tl.load(w_ptr + outs[:, None] * W + cols, mask=mask, other=0.0) * n, 1)
        out += tl.load(b_ptr + outs, mask=outs < N_OUT, other=0.0)
        tl.store(out_ptr + row.to(tl.int64) * N_OUT + outs, out, mask=outs < N_OUT)


def head_out(h: Tensor, mod: Tensor, step: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write out (E, O) float32 of h (E, W) float32.

    Args:
        mod: (slots, E, 2W) view that starts at the final shift; its last stride is 1.
        step: (3,) int32: current step, next one, first step of `mod`.
    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    rows, width = h.shape
    outputs = len(weight)
    if weight.shape != (outputs, width) or out.shape != (rows, outputs) or mod.shape[1:] != (rows, 2 * width):
        raise ValueError(f"h {tuple(h.shape)}, mod {tuple(mod.shape)} and weight {tuple(weight.shape)} do not fit")
    if {h.dtype, weight.dtype, bias.dtype, out.dtype} != {torch.float32} or mod.stride(2) != 1:
        raise ValueError("h, weight, bias and out must be float32, and mod rows of one buffer")
    head_out_kernel[(rows,)](
        h, mod, step, weight, bias, out, rows, mod.stride(1),
        W=width, N_OUT=outputs, BLOCK_W=triton.next_power_of_2(width), BLOCK_O=8, num_warps=4,
    )  # fmt: skip
