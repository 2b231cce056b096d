"""Keys and values of a causal backbone, kept between steps: fixed slots of N positions per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class BlockKeyValues(Protocol):
    """One block's part of the cache in one pass."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the keys and values of the pass, (B, H, n, d) each.

        Returns:
            keys and values to attend to, (B, H, M, d), and which of them each row may see, (B, M) bool; None: all.
        """
        ...


class KeyValues:
    """The cache of S rows; memory never moves, so a CUDA graph may read and write it."""

    def __init__(self, depth: int, rows: int, heads: int, positions: int, head_dim: int, device: torch.device,
                 dtype: torch.dtype = torch.float32):  # fmt: skip
        shape = (depth, rows, heads, positions, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (blocks, S, H, N, d)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def rows(self) -> int:
        """S."""
        return self.keys.shape[1]

    def next(self, block: int, rows: Tensor, positions: Tensor, longest: int) -> NextPosition:
        """Store one position of each of B rows, and read those up to `longest`."""
        seen = torch.arange(longest, device=rows.device) <= positions[:, None]  # (B, longest)
        return NextPosition(self.keys[block], self.values[block], rows, positions, seen)

    def prefix(self, block: int, rows: Tensor) -> Prefix:
        """Store the first positions of B rows."""
        return Prefix(self.keys[block], self.values[block], rows)


@dataclass(frozen=True)
class NextPosition:
    """A pass over one position per row, each row at its own."""

    keys: Tensor  # (S, H, N, d)
    values: Tensor
    rows: Tensor  # (B,)
    positions: Tensor  # (B,)
    seen: Tensor  # (B, M) bool

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        longest = self.seen.shape[1]
        self.keys[self.rows, :, self.positions] = k[:, :, 0].to(self.keys.dtype)
        self.values[self.rows, :, self.positions] = v[:, :, 0].to(self.values.dtype)
        return self.keys[self.rows, :, :longest], self.values[self.rows, :, :longest], self.seen


@dataclass(frozen=True)
class Prefix:
    """A causal pass over the first n positions of each row, as after a restore."""

    keys: Tensor  # (S, H, N, d)
    values: Tensor
    rows: Tensor  # (B,)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, None]:
        self.keys[self.rows, :, : k.shape[2]] = k.to(self.keys.dtype)
        self.values[self.rows, :, : v.shape[2]] = v.to(self.values.dtype)
        return k, v, None
