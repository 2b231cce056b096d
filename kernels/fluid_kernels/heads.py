"""Paths of the diffusion head's sampling loop: interchangeable implementations behind `make_head`.

    torch     any device; the fastest on a CPU, and the oracle of the other        loops/torch_loop.py
    triton    fused operations, one CUDA graph per bucket of rows                  loops/fused_loop.py
    auto      triton on a CUDA device, torch elsewhere

`auto` follows a measurement (`python -m benchmarks.gpu decide`): on an H200 the loop of an image of MAR-B takes 541 ms
by triton and 7,935 ms by torch, 83 and 1,278 ms for each of 8, 19.8 and 235 ms for each of 64 together. A third path,
one kernel for all steps, was right but slower at every number of rows, and is gone (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fluid_kernels.head_loop import Chains, HeadWeights, Rows
from fluid_kernels.loops.torch_loop import TorchHead

HeadPath = Literal["auto", "torch", "triton"]
PATHS: tuple[str, ...] = get_args(HeadPath)
OLDEST_TRITON = (3, 6)  # older ones lack launch options that the kernels ask for; 3.7.1 is what they were compiled with


class HeadPathError(ValueError):
    """The requested path cannot run here; the message says why, and which path can."""


class Head(Protocol):
    """A head's weights, prepared for one path of the loop."""

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
        """(M, C) float32 tokens; see head_loop.py."""
        ...

    def buckets(self, most: int) -> list[tuple[int, int]]:
        """(rows, guided) of the calls that prepare every shape of steps with up to `most` rows; none on a CPU."""
        ...


def make_head(weights: HeadWeights, dtype: torch.dtype, path: str = "auto") -> Head:
    """A head on the device of `weights`.

    Args:
        weights: float32, because the first step of eps chains is computed in float32.
        dtype: of the matrix products, bfloat16 or float32; sums, statistics and the update are float32.
        path: one of PATHS; `choose_path` says what `auto` becomes.
    Raises:
        HeadPathError: the path is unknown or cannot run on this device.
    """
    chosen = choose_path(path, weights.up.device)
    if weights.post_weight is not None and chosen != "torch":
        if path != "auto":
            raise HeadPathError(
                f"kernels {path!r} have no norm behind a block's MLP, as NOVA's head has; use auto or torch"
            )
        chosen = "torch"
    if chosen == "torch":
        return TorchHead(weights, dtype)
    from fluid_kernels.loops.fused_loop import TritonHead  # importing Triton costs seconds

    return TritonHead(weights, dtype)


def choose_path(path: str, device: torch.device) -> str:
    """The path that `make_head` will run: `path` with `auto` resolved.

    Raises:
        HeadPathError: see make_head.
    """
    if path not in PATHS:
        raise HeadPathError(f"kernels {path!r} is not one of {', '.join(PATHS)}")
    if path == "auto":
        return "triton" if device.type == "cuda" and _triton() >= OLDEST_TRITON else "torch"
    if path != "torch" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise HeadPathError(f"kernels {path!r} need a GPU, and the model is on {device}; use auto or torch")
    if path != "torch" and _triton() < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise HeadPathError(f"kernels {path!r} need triton {oldest} or newer; install it, or use auto or torch")
    return path


def _triton() -> tuple[int, ...]:
    """The installed Triton's version, or (), found by importing it: its package has other names for other chips."""
    if importlib.util.find_spec("triton") is None:
        return ()
    version = str(importlib.import_module("triton").__version__)
    return tuple(int(part) for part in version.split(".")[:2])
