"""Weights of a checkpoint stored in 8 bits: half of bfloat16's bytes on disk; they are widened when they are loaded.

Each matrix becomes integers with one scale per output (fluid_kernels/ops/int8_linear.py): a weight is off by at most
1/254 of its row's largest. Vectors, tables of few entries and convolutions stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluid_kernels.ops.int8_linear import quantize_rows

SCALE = ".scale"  # of a key: the scales of the matrix whose key is before it
SMALLEST = 4096  # entries of a matrix that is worth it


def narrowed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with its matrices in 8 bits, each beside its scales, (out,) bfloat16."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.is_floating_point() and value.ndim == 2 and value.numel() >= SMALLEST:
            out[key], out[key + SCALE] = quantize_rows(value)
        else:
            out[key] = value
    return out


def lacks_scales(state: dict[str, Tensor]) -> str:
    """The first 8-bit matrix without scales of its height; "" if there is none."""
    for key, value in state.items():
        if value.dtype == torch.int8:
            scale = state.get(key + SCALE)
            if scale is None or value.ndim != 2 or scale.shape != value.shape[:1]:
                return key
    return ""


def take(state: dict[str, Tensor], key: str) -> Tensor | None:
    """Remove a tensor from a stored state, widened to float32 if it is in 8 bits: one at a time, to save memory."""
    found = state.pop(key, None)
    if found is None or found.dtype != torch.int8:
        return found
    return found.float() * state.pop(key + SCALE).float()[:, None]
