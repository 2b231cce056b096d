"""Listing what is compiled ahead, before processes are forked."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device here would serve whoever asks for it")
@pytest.mark.parametrize("call", ["first", "second"])
def test_listing_what_to_compile_touches_no_device(call: str) -> None:
    """The checks used to draw their inputs on the device while they were listed. A process that has used CUDA cannot
    fork others that do: on the first GPU nothing was compiled ahead, and part `ops` ran out of its 20 seconds."""
    from benchmarks.gpu import warm  # late: a kernel defined while tests are collected would not be interpreted
    from benchmarks.gpu.calls import FIRST, second

    models = {"first": FIRST, "second": second(0.05)}[call].models
    args: Any = argparse.Namespace(device="cuda", quick=False, models=models)
    tasks = {"first": warm.first_tasks, "second": warm.second_tasks}[call](args)
    names = [name for name, _ in tasks]
    for kind in {"first": ("linear silu", "head mar-b", "backbone mar-b"), "second": ("gated 3.1B", "head 3.1B")}[call]:
        assert any(name.startswith(kind) for name in names), kind
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        tasks[0][1]()  # only now
