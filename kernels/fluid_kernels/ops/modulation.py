"""Modulation of many steps as one blocked product, ahead of the steps.

    y[s, e]   = silu(time[chain of e, first + s] + condition[e])
    mod[s, e] = y[s, e] Wᵀ + b          every block's shift, scale and gate, then the final shift and scale

3·L + 2 of the head's 5·L + 2 square products depend on (t, z) and not on x. Inside the loop they would be products of
few rows that read 2·(3·L + 2)·W² bytes of weights at every step; ahead of it a few hundred rows share each read. 1 is
added to the bias of every scale, so that readers get 1 + scale.

There is nothing to fuse into this product, and it is wide, (3·L + 2)·W = 20,480 columns of MAR-B's head: from
LIBRARY_ROWS rows on a GPU's library multiplies it. On an H200 1,024 rows take cuBLAS 65.6 µs and our product 88.5 at
MAR-B's sizes, 262 and 353 at MAR-H's, 245 and 334 at the 3.1B preset's: tiles of 128 × 256 read from the L2 cache on
their own, and cuBLAS shares its reads within clusters. With fewer rows both wait for W.

Sources: the factorisation is exact and follows from MAR's SimpleMLPAdaLN (arXiv 2406.11838); loops/torch_loop.py.

Bytes of s steps of E evaluations: 2·(3·L + 2)·W² once, 4·W·(S·K + E) in for y, and s·E·(3·L + 2)·W·2 out and in again;
FLOPs 2·s·E·(3·L + 2)·W².
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fluid_kernels.head_loop import HeadWeights
from fluid_kernels.ops.linear_triton import by_library, linear, silu

LIBRARY_ROWS = 128


def stack_modulation(weights: HeadWeights, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight ((3L + 2)·W, W) in `dtype` and the float32 bias, with 1 added to every scale's."""
    width = weights.width
    weight = torch.cat([weights.modulation.flatten(0, 1), weights.final_modulation]).to(dtype).contiguous()
    blocks, final = weights.modulation_bias.float().clone(), weights.final_modulation_bias.float().clone()
    blocks[:, width : 2 * width] += 1
    final[width:] += 1
    return weight, torch.cat([blocks.flatten(), final])


def modulation_ref(times: Tensor, condition: Tensor, entry: Tensor, weight: Tensor, bias: Tensor, steps: int) -> Tensor:
    """The definition, float32: (T, W) times, (E, W), (E,) entry of the first step -> (steps, E, N)."""
    which = entry[None] + torch.arange(steps, device=entry.device)[:, None]  # (steps, E)
    y = F.silu(times.float()[which] + condition.float())
    return F.linear(y, weight.float(), bias.float())


@triton.jit(do_not_specialize=["n_evaluations", "n_times"])
def embed_kernel(
    time_ptr, condition_ptr, entry_ptr, y_ptr, n_evaluations, n_times, W: tl.constexpr, BLOCK_W: tl.constexpr
):
    """One (step, evaluation) per program. Steps beyond the table's end read its last entry, and are never used."""
    program = tl.program_id(0)
    step, evaluation = program // n_evaluations, program % n_evaluations
    entry = tl.minimum(tl.load(entry_ptr + evaluation) + step, n_times - 1).to(tl.int64)
    cols = tl.arange(0, BLOCK_W)
    inside = cols < W
    time = tl.load(time_ptr + entry * W + cols, mask=inside, other=0.0).to(tl.float32)
    condition = tl.load(condition_ptr + evaluation.to(tl.int64) * W + cols, mask=inside, other=0.0).to(tl.float32)
    y = silu(time + condition)
    tl.store(y_ptr + program.to(tl.int64) * W + cols, y.to(y_ptr.dtype.element_ty), mask=inside)


def modulation(
    times: Tensor, condition: Tensor, entry: Tensor, weight: Tensor, bias: Tensor, y: Tensor, mod: Tensor, steps: int
) -> None:
    """Write the first `steps` slots of mod (slots, E, N), which readers index by step.

    Args:
        times: (T, W) time embeddings of all chains, one after the other.
        condition: (E, W).
        entry: (E,) int32, entry in `times` of each evaluation's first step of the chunk.
        weight, bias: from stack_modulation.
        y: (slots, E, W) scratch in weight's dtype.
    Raises:
        ValueError: shapes or dtypes do not fit together.
    """
    slots, evaluations, width = y.shape
    if times.shape[1] != width or condition.shape != (evaluations, width) or entry.shape != (evaluations,):
        raise ValueError(
            f"times {tuple(times.shape)}, condition {tuple(condition.shape)} and y {tuple(y.shape)} do not fit"
        )
    if not 0 < steps <= slots or mod.shape != (slots, evaluations, len(weight)) or entry.dtype != torch.int32:
        raise ValueError(f"{steps} steps do not fit into mod {tuple(mod.shape)} of {slots} slots")
    embed_kernel[(steps * evaluations,)](
        times, condition, entry, y, evaluations, len(times), W=width, BLOCK_W=triton.next_power_of_2(width), num_warps=4
    )
    library = by_library(weight, steps * evaluations, LIBRARY_ROWS)
    product(y[:steps].flatten(0, 1), weight, bias, mod[:steps].flatten(0, 1), library)


def product(y: Tensor, weight: Tensor, bias: Tensor, mod: Tensor, library: bool) -> None:
    """Write mod (rows, N) = y (rows, W) Wᵀ + b. The library rounds b to its dtype, in which mod is rounded anyway."""
    if library:
        torch.addmm(bias.to(weight.dtype), y, weight.T, out=mod)
    else:
        linear(y, weight, bias, mod)
