"""The residual stream of a stack of pre-norm blocks: plain, or with each sum fused with the norm behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Residual(Protocol):
    """The stream (B, N, D): blocks read it normalised, and add to it."""

    def normed(self, norm: nn.LayerNorm, last: bool = False) -> Tensor:
        """The stream through a norm. last: not for a product, so float32."""
        ...

    def add(self, delta: Tensor) -> None: ...


@dataclass(eq=False)
class PlainResidual:
    """As blocks are written on paper; for training, and for CPUs. FSDP looks for tensors in dataclasses."""

    x: Tensor

    def normed(self, norm: nn.LayerNorm, last: bool = False) -> Tensor:
        normed: Tensor = norm(self.x)
        return normed

    def add(self, delta: Tensor) -> None:
        self.x = self.x + delta


class FusedResidual:
    """A sum waits for the norm that follows it, and both are one kernel that writes what the next product reads."""

    def __init__(self, x: Tensor, dtype: torch.dtype):
        """x: overwritten. dtype: of the products that read the normalised stream."""
        self.x, self.dtype = x.contiguous(), dtype
        self._delta: Tensor | None = None

    def normed(self, norm: nn.LayerNorm, last: bool = False) -> Tensor:
        from fluid_kernels.ops.add_norm import add_norm  # importing Triton costs seconds

        width = self.x.shape[-1]
        n = torch.empty_like(self.x, dtype=torch.float32 if last else self.dtype)
        delta = None if self._delta is None else self._delta.contiguous().view(-1, width)
        add_norm(self.x.view(-1, width), delta, norm.weight, norm.bias, n.view(-1, width))
        self._delta = None
        return n

    def add(self, delta: Tensor) -> None:
        if self._delta is not None:
            raise RuntimeError("two sums without a norm between them")
        self._delta = delta


def residual(x: Tensor, fused: torch.dtype | None) -> Residual:
    """A stream that begins with x, which belongs to it. fused: the dtype of products if a GPU's kernels are used."""
    return PlainResidual(x) if fused is None else FusedResidual(x, fused)
