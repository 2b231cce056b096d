"""Counter-based random numbers: the same bits in torch on any device and in Triton.

    r0, r1, r2, r3 = philox4x32_10(key = seed, counter = (channel // 4, step, position, purpose))

So a random number depends only on its purpose: not on the batch, the row, the worker, the device, or the
autoregressive step at which a token happens to be decoded.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (constants and rounds); triton.language
(`tl.philox`, the mapping to floats and Box-Muller), whose float32 result the torch version matches within 1e-6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Purposes, the last counter word: streams of different purpose never overlap.
ORDER, INITIAL, STEP, CATEGORY, CHOICE = 0, 1, 2, 3, 4

_MASK = 0xFFFF_FFFF
_ROUND_A, _ROUND_B = 0xD251_1F53, 0xCD9E_8D57
_KEY_A, _KEY_B = 0x9E37_79B9, 0xBB67_AE85


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit words; all arguments broadcast.

    Args:
        seed: 64-bit key; the low word is the first key word.
        c0..c3: the counter's words.
    Returns:
        Four int64 tensors with values in [0, 2³²).
    """
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        a, b = c0 * _ROUND_A, c2 * _ROUND_B  # 64 bits; int64 wraps to the same bits as unsigned
        c0, c1, c2, c3 = (b >> 32 & _MASK) ^ c1 ^ k0, b & _MASK, (a >> 32 & _MASK) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    # Only here: the first rounds depend on some of the words each, and are cheaper on small tensors.
    return torch.broadcast_tensors(c0, c1, c2, c3)


def to_uniform(bits: Tensor) -> Tensor:
    """[0, 2³²) -> [0, 1) float32, as Triton does: fold the sign away, then scale."""
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)  # the same bits read as int32
    folded = torch.where(signed < 0, -signed - 1, signed)
    return folded.to(torch.float32) * 4.6566127342e-10


def normal_ref(seed: Tensor, purpose: int, position: Tensor, step: Tensor, channels: int) -> Tensor:
    """Standard normal numbers for tokens, by Box-Muller on each pair of Philox words.

    Args:
        seed: (..., ) int64, one per token.
        position: (..., ) int64, the token's place on the grid.
        step: (..., ) int64, the diffusion timestep it is drawn for. Broadcasts with the other two.
        channels: C; any number, four come from each Philox call.
    Returns:
        (..., C) float32.
    """
    seed, position, step = torch.broadcast_tensors(seed, position, step)
    quads = torch.arange(math.ceil(channels / 4), device=seed.device)
    fixed = torch.full((1,), purpose, dtype=torch.int64, device=seed.device)
    words = philox(seed[..., None], quads, step[..., None], position[..., None], fixed)  # 4 × (..., C/4)
    # Box-Muller in float64, rounded once: float32 log and cos of vectorised libraries differ in the last bit with the
    # place of an element in its tensor, and an image must not depend on that.
    u = [to_uniform(w).double() for w in words]
    pairs = []
    for first, second in ((u[0], u[1]), (u[2], u[3])):
        radius = torch.sqrt(-2.0 * torch.log(first.clamp_min(1.0e-7)))
        angle = 6.283185307179586 * second
        pairs += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(pairs, dim=-1).flatten(-2)[..., :channels].float()


def gumbel_ref(seed: Tensor, purpose: int, position: Tensor, step: Tensor, count: int) -> Tensor:
    """Standard Gumbel numbers for tokens: the largest of logits plus these is a sample of their softmax.

    Args:
        seed, position, step: as in `normal_ref`; step is an autoregressive one.
        count: K; any number, four come from each Philox call.
    Returns:
        (..., K) float32, finite.
    """
    seed, position, step = torch.broadcast_tensors(seed, position, step)
    quads = torch.arange(math.ceil(count / 4), device=seed.device)
    fixed = torch.full((1,), purpose, dtype=torch.int64, device=seed.device)
    words = philox(seed[..., None], quads, step[..., None], position[..., None], fixed)  # 4 × (..., K/4)
    # In float64, rounded once, as in `normal_ref`; with the half, never 0 or 1.
    uniform = (torch.stack(words, dim=-1).flatten(-2)[..., :count].double() + 0.5) / (1 << 32)
    return -torch.log(-torch.log(uniform)).float()


def order_keys(seed: Tensor, positions: int) -> Tensor:
    """(B, ) seeds -> (B, N) integer sort keys in [0, 2³²); sorting them gives each seed's random order."""
    place = torch.arange(positions, device=seed.device)
    zero = torch.zeros((1,), dtype=torch.int64, device=seed.device)
    return philox(seed[:, None], zero, zero, place, zero + ORDER)[0]
