"""Which tokens are decided when: orders, and how many are left after each autoregressive step.

MaskGIT's cosine schedule (arXiv 2202.04200) as MAR and Fluid use it: after step i of S, floor(N·cos(π/2·(i+1)/S))
tokens are still masked, at least one fewer than before, and none after the last (for S <= N, which callers check).
The masked ones are the *first* so many entries of the order, so decoding walks it from its end (MAR's convention).
"""

from __future__ import annotations

import math
from functools import lru_cache
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


def halton_order(seeds: Tensor, grid: int) -> Tensor:
    """(B,) seeds -> (B, N): a low-discrepancy order, so that tokens decided in one step lie far apart.

    The cells of the grid as a 2-D Halton sequence (bases 2 and 3) first visits them, shifted around by the seed; some
    seeds swap rows and columns. Besnier et al. 2025 (arXiv 2503.17076) use it for MaskGIT; backwards, because
    decoding starts at the order's end.
    """
    shift = order_keys(seeds, 3)  # (B, 3)
    cells = torch.tensor(_halton_cells(grid), device=seeds.device)  # (N, 2)
    down, right = (cells[None] + shift[:, None, :2]).remainder(grid).unbind(-1)  # (B, N)
    swapped = (shift[:, 2:] & 1).bool()
    return torch.where(swapped, right * grid + down, down * grid + right).flip(1)


@lru_cache(maxsize=8)
def _halton_cells(grid: int) -> list[tuple[int, int]]:
    seen: dict[tuple[int, int], None] = {}
    index = 1
    while len(seen) < grid * grid:
        seen[int(_radical_inverse(index, 2) * grid), int(_radical_inverse(index, 3) * grid)] = None
        index += 1
    return list(seen)


def _radical_inverse(index: int, base: int) -> float:
    """The digits of `index` mirrored at the point: van der Corput's sequence."""
    value, place = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * place
        place /= base
    return value


def make_order(kind: str, seeds: Tensor, grid: int) -> Tensor:
    """(B,) seeds -> (B, N), "random" or "halton"."""
    return halton_order(seeds, grid) if kind == "halton" else random_order(seeds, grid * grid)


def annealed(first: int, last: int, step: int, steps: int) -> int:
    """Diffusion steps of AR step `step`: from `first` to `last` in a straight line (DiSA, arXiv 2505.20297).

    Late tokens are nearly determined by the many known ones, so that fewer diffusion steps draw them as well.
    """
    return round(first + (last - first) * step / (steps - 1)) if steps > 1 else first


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
