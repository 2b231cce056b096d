"""Rows with different numbers of known tokens in one batch: their known positions packed to the front, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_known(x: Tensor, present: Tensor, longest: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Move present positions to the front of each row, and cut at `longest` or at the fullest row.

    Rows of one batch are at different steps, so they have different numbers of known tokens; shorter rows are padded,
    and attention must not see the padding.

    Returns:
        (B, K, D) packed; (B, K) the position each entry came from; (B, K) bool, False on padding, or None without any.
    """
    count = present.sum(1)  # (B,)
    counted = longest is None
    longest = int(count.max()) if longest is None else longest
    place = present.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]  # (B, K)
    packed = x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
    real = torch.arange(longest, device=x.device) < count[:, None]
    return packed, place, None if counted and bool(real.all()) else real


def unpack_known(x: Tensor, place: Tensor, present: Tensor, filling: Tensor) -> Tensor:
    """Inverse of `pack_known`: (B, K, D) back to (B, P, D), with `filling` (D,) or (P, D) where nothing is."""
    spread = x.new_zeros(*present.shape, x.shape[-1]).scatter(1, place[..., None].expand_as(x), x)
    return torch.where(present[..., None], spread, filling)  # padding landed on absent positions: overwritten here
