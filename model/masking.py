"""Which tokens are decided when: orders, and how many are left after each autoregressive step.

MaskGIT's cosine schedule (arXiv 2202.04200) as MAR and Fluid use it: after step i of S, floor(N·cos(π/2·(i+1)/S))
tokens are still masked, at least one fewer than before, and none after the last (for S <= N, which callers check).
The masked ones are the *first* so many entries of the order, so decoding walks it from its end (MAR's convention).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from fluid_kernels.philox import order_keys


def masked_after(step: int, steps: int, tokens: int) -> int:
    """How many tokens are still masked after AR step `step` (0-based) of `steps`.

    The clamp "at least one fewer than before" makes early steps of a long schedule decode one token each.
    """
    if step < 0:
        return tokens
    if step >= steps - 1:
        return 0
    wanted = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
    return min(wanted, tokens - 1 - step)


def tokens_per_step(steps: int, tokens: int) -> list[int]:
    """How many tokens each of the `steps` decides; all positive, sum `tokens`."""
    left = [masked_after(i, steps, tokens) for i in range(-1, steps)]
    return [before - after for before, after in pairwise(left)]


def random_order(seeds: Tensor, tokens: int) -> Tensor:
    """(B,) int64 seeds -> (B, N): each row a permutation that depends on its seed alone."""
    return order_keys(seeds, tokens).argsort(dim=-1, stable=True)


def guidance_at(scale: float, schedule: str, masked: int, tokens: int) -> float:
    """Guidance scale of an AR step that leaves `masked` tokens.

    "constant": the scale itself. "linear": from 1 while all is masked up to nearly the scale (Muse, MAR). MAR's code
    clamps its count of masked tokens to at least one before it gets here, so the last step falls short by 1/N.
    """
    return scale if schedule == "constant" else 1 + (scale - 1) * (tokens - max(masked, 1)) / tokens


def training_masks(batch: int, tokens: int, generator: torch.Generator) -> Tensor:
    """(B, N) bool, True = masked; ratio cos(π/2·u), u uniform but stratified over the batch.

    Stratifying (row i draws its u from the i-th of B equal parts) leaves each row's distribution what it was and
    takes most of the noise out of the batch's total. At least one token of every row is masked.
    """
    u = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
    count = (tokens * torch.cos(math.pi / 2 * u)).ceil().clamp(1, tokens)  # (B,)
    rank = torch.rand(batch, tokens, generator=generator).argsort(-1).argsort(-1)  # (B, N)
    return rank < count[:, None]
