"""Which form of the diffusion head's sampling loop runs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fluid_kernels.head_loop import Chains, HeadWeights, Rows
from fluid_kernels.head_loop_torch import TorchHead

PATHS = ("auto", "torch", "triton", "persistent")


class Head(Protocol):
    """A head's weights, ready to run the loop."""

    path: str  # which form it is

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor: ...


def make_head(weights: HeadWeights, dtype: torch.dtype, path: str = "auto") -> Head:
    """The loop for these weights.

    Raises:
        ValueError: the path cannot run here.
    """
    if path not in ("auto", "torch"):
        raise ValueError(f"path {path!r} cannot run here; use auto or torch")
    return TorchHead(weights, dtype)
