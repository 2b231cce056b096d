"""The schedule of decoding: the order of tokens, and how many stay masked after each autoregressive step.

MaskGIT's cosine schedule (arXiv 2202.04200) as MAR and Fluid use it: after step i of S, floor(N·cos(π/2·(i+1)/S))
tokens are still masked, at least one fewer than before, and none after the last (for S <= N, which callers check).
The masked ones are the *first* entries of the order, so decoding walks it from its end (MAR's convention).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from fluid_kernels.philox import order_keys
from model.config import ModelConfig

DETAIL_STEPS = 4  # most steps of an order "gtr" for the second half of the tokens, unless there are too many steps


def masked_after(step: int, steps: int, tokens: int, order: str = "random", unmasking: str = "maskgit") -> int:
    """Number of tokens still masked after AR step `step` (0-based) of `steps`; all of them at step -1.

    The clamp "at least one fewer than before" makes early steps of a long schedule decode one token each.

    order: "gtr" has a schedule of its own (arXiv 2510.17171): the first half of the tokens, a checkerboard, is decided
        slowly, and the rest, each of which has known neighbours on all sides by then, in a few steps. All other kinds
        share the cosine.
    unmasking: of the model's config. "amused" rounds as diffusers' scheduler, which computes the cosine in float32:
        cos π/3, the only rational value inside, falls just below 1/2, so that half of an even number is one fewer.
    """
    if order == "gtr" and tokens > 1 < steps and step >= 0:
        rest = tokens // 2
        quick = detail_steps(steps, tokens)
        slow = steps - quick
        if step < slow:
            return rest + masked_after(step, slow, tokens - rest, unmasking=unmasking)
        return rest - rest * (step - slow + 1) // quick
    if step < 0:
        return tokens
    if step >= steps - 1:
        return 0
    wanted = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps) - (1e-4 if unmasking == "amused" else 0))
    return min(wanted, tokens - 1 - step)


def detail_steps(steps: int, tokens: int) -> int:
    """Number of the last steps of an order "gtr", which decide tokens // 2; every step decides at least one."""
    few = max(1, min(DETAIL_STEPS, steps // 8))
    return max(few, steps - (tokens - tokens // 2))


def tokens_per_step(steps: int, tokens: int, order: str = "random") -> list[int]:
    """Number of tokens that each of the `steps` decides: all positive, with sum `tokens`."""
    left = [masked_after(i, steps, tokens, order) for i in range(-1, steps)]
    return [before - after for before, after in pairwise(left)]


def random_order(seeds: Tensor, tokens: int) -> Tensor:
    """(B,) int64 seeds -> (B, N): per row a permutation that depends on its own seed only."""
    return order_keys(seeds, tokens).argsort(dim=-1, stable=True)


def halton_order(seeds: Tensor, grid: int) -> Tensor:
    """(B,) seeds -> (B, N): a low-discrepancy order, so that tokens decided in one step lie far apart.

    Cells of the grid in the order in which a 2-D Halton sequence (bases 2 and 3) first visits them, cyclically shifted
    by the seed; half of the seeds also swap rows and columns. Besnier et al. 2025 (arXiv 2503.17076) use it for
    MaskGIT. Reversed here, because decoding starts at the end of an order.
    """
    shift = order_keys(seeds, 3)  # (B, 3)
    cells = torch.tensor(_halton_cells(grid), device=seeds.device)  # (N, 2)
    down, right = (cells[None] + shift[:, None, :2]).remainder(grid).unbind(-1)  # (B, N)
    swapped = (shift[:, 2:] & 1).bool()
    return torch.where(swapped, right * grid + down, down * grid + right).flip(1)


def checkerboard_order(seeds: Tensor, grid: int) -> Tensor:
    """(B,) seeds -> (B, N): one colour of a checkerboard in Halton order, then the other; the seed chooses which.

    The order of Generation then Reconstruction (arXiv 2510.17171), which takes random cells of each colour; Halton's
    sequence keeps the first ones apart as well. Reversed, as all orders are.
    """
    order = halton_order(seeds, grid)  # (B, N)
    first = order_keys(seeds, 4)[:, 3:] & 1  # (B, 1)
    colour = (order // grid + order % grid) & 1  # (B, N)
    return order.gather(1, (colour == first).to(torch.int8).argsort(dim=1, stable=True))


@lru_cache(maxsize=8)
def _halton_cells(grid: int) -> list[tuple[int, int]]:
    """(row, column) of every cell of a grid × grid image, each once."""
    seen: dict[tuple[int, int], None] = {}
    index = 1
    while len(seen) < grid * grid:
        seen[int(_radical_inverse(index, 2) * grid), int(_radical_inverse(index, 3) * grid)] = None
        index += 1
    return list(seen)


def _radical_inverse(index: int, base: int) -> float:
    """Digits of `index` mirrored at the radix point, in [0, 1): van der Corput's sequence."""
    value, place = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * place
        place /= base
    return value


def make_order(kind: str, seeds: Tensor, grid: int) -> Tensor:
    """(B,) int64 seeds -> (B, N) int64; the end of an order is decided first.

    kind: "random", "halton", "gtr" or "raster". "confidence" has no order ahead of the first step; this gives a
    random one, for what needs one all the same, such as the tokens that a variation keeps.
    """
    if kind == "raster":
        return torch.arange(grid * grid - 1, -1, -1, device=seeds.device).expand(len(seeds), -1)
    if kind == "gtr":
        return checkerboard_order(seeds, grid)
    return halton_order(seeds, grid) if kind == "halton" else random_order(seeds, grid * grid)


def orders_of(config: ModelConfig) -> tuple[str, ...]:
    """The orders that a model can be decoded in, its default first."""
    if config.causal:
        return ("raster",)
    return ("random", "halton", "gtr", "confidence") if config.categorical else ("random", "halton", "gtr")


def annealed(first: int, last: int, step: int, steps: int) -> int:
    """Diffusion steps of AR step `step`, annealed linearly from `first` to `last` (DiSA, arXiv 2505.20297).

    Late tokens are nearly determined by the many known ones, so fewer diffusion steps sample them as well.
    """
    return round(first + (last - first) * step / (steps - 1)) if steps > 1 else first


def guidance_at(scale: float, schedule: str, masked: int, tokens: int) -> float:
    """Guidance scale of an AR step that leaves `masked` of `tokens` tokens masked.

    "constant": the scale itself. "linear": from 1, while all is masked, up to nearly the scale (Muse, MAR). MAR's code
    clamps its count of masked tokens to at least one before it gets here, so the last step falls short by 1/N.
    """
    return scale if schedule == "constant" else 1 + (scale - 1) * (tokens - max(masked, 1)) / tokens


def training_masks(
    batch: int, tokens: int, generator: torch.Generator, orders: Mapping[str, float] | None = None
) -> Tensor:
    """(B, N) bool, True = masked. Mask ratio cos(π/2·u), with u uniform and stratified over the batch.

    Stratification (each row draws its u from another of B equal parts of [0, 1)) leaves each row's distribution as it
    was and removes most of the noise from the batch's total. At least one token of every row is masked.

    Args:
        tokens: N; a square number if there are orders.
        orders: kind of order -> chance that a row's known tokens are those that such an order decides first; of all
            other rows any tokens are known.
    """
    u = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
    count = (tokens * torch.cos(math.pi / 2 * u)).ceil().clamp(1, tokens)  # (B,)
    chances = torch.rand(batch, tokens, generator=generator)
    most = chances.sort(-1).values.gather(-1, count.long()[:, None] - 1)  # (B, 1) the count-th smallest
    masked = chances <= most
    chosen = {kind: chance for kind, chance in (orders or {}).items() if chance > 0}
    if not chosen:
        return masked
    seeds = torch.randint(2**62, (batch,), generator=generator)
    lot, below = torch.rand(batch, 1, generator=generator), 0.0
    for kind, chance in chosen.items():
        place = make_order(kind, seeds, math.isqrt(tokens)).argsort(-1)  # (B, N) of each token in the order
        masked = torch.where((below <= lot) & (lot < below + chance), place < count[:, None], masked)
        below += chance
    return masked
