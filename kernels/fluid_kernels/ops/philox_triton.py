"""The Triton form of `philox.normal_ref`: one program draws the normal numbers of a block of tokens.

Separate from philox.py because importing Triton costs seconds and a CPU worker never needs it.

Bytes per token: 24 in, 4·C out; about 60 integer operations per number. So it belongs inside a larger kernel
(denoise_update.py); this one draws initial noise, and proves that device and CPU draw the same numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def token_normal(seed, purpose, position, step, channel):
    """Normal numbers (float32) for broadcastable int64 `seed` and int32 position, step and channel blocks.

    Channel c takes output c % 4 of the Philox call with counter word c // 4; the pairs (0, 1) and (2, 3) share a
    Box-Muller radius.
    """
    zero = channel * 0 + position * 0 + step * 0
    r0, r1, r2, r3 = tl.philox(
        seed, (channel // 4 + zero).to(tl.uint32), (step + zero).to(tl.uint32),
        (position + zero).to(tl.uint32), (purpose + zero).to(tl.uint32),
    )  # fmt: skip
    lane = channel % 4
    first = tl.uint_to_uniform_float(tl.where(lane < 2, r0, r2))
    second = tl.uint_to_uniform_float(tl.where(lane < 2, r1, r3))
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(1.0e-7, first)))
    angle = 6.283185307179586 * second
    return radius * tl.where(lane % 2 == 0, tl.cos(angle), tl.sin(angle))


@triton.jit(do_not_specialize=["purpose", "n_tokens"])
def _normal_kernel(
    seed_ptr, position_ptr, step_ptr, out_ptr, purpose, n_tokens,
    C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_C)
    inside = rows < n_tokens
    seed = tl.load(seed_ptr + rows, mask=inside, other=0)[:, None]
    position = tl.load(position_ptr + rows, mask=inside, other=0).to(tl.int32)[:, None]
    step = tl.load(step_ptr + rows, mask=inside, other=0).to(tl.int32)[:, None]
    noise = token_normal(seed, purpose, position, step, cols[None, :].to(tl.int32))
    where = rows.to(tl.int64)[:, None] * C + cols[None, :]
    tl.store(out_ptr + where, noise, mask=inside[:, None] & (cols[None, :] < C))


def normal(seed: Tensor, purpose: int, position: Tensor, step: Tensor, channels: int) -> Tensor:
    """(M, ) int64 seed, position and step -> (M, C) float32; same contract as `normal_ref`.

    Raises:
        ValueError: the three are not one-dimensional int64 tensors of one length.
    """
    for name, tensor in (("seed", seed), ("position", position), ("step", step)):
        if tensor.ndim != 1 or tensor.dtype != torch.int64 or len(tensor) != len(seed):
            raise ValueError(f"{name} must be ({len(seed)}, ) int64, not {tuple(tensor.shape)} {tensor.dtype}")
    out = torch.empty(len(seed), channels, dtype=torch.float32, device=seed.device)
    block = 64
    _normal_kernel[(triton.cdiv(len(seed), block),)](
        seed.contiguous(), position.contiguous(), step.contiguous(), out, purpose, len(seed),
        C=channels, BLOCK_M=block, BLOCK_C=triton.next_power_of_2(channels),
    )  # fmt: skip
    return out
