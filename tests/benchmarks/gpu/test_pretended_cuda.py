"""Every part of both calls puts its tensors on the right device, as tested on a simulated GPU."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import exact
from benchmarks.gpu import bench, cases, check
from benchmarks.gpu.calls import FIRST, second
from benchmarks.gpu.parts import Part, Record
from fluid_kernels import heads
from model.inference import engine, serving
from tests.model.pretend_cuda import PretendCuda, moved, waits

pytestmark = pytest.mark.slow

KERNELS = ("compile", "philox", "ops", "tiles")  # interpreted in the rehearsal instead
PARTS = [part for part in (*FIRST.parts, *second(0.05).parts) if part.name not in (*KERNELS, "machine", "training")]


class HostGenerator(torch.Generator):
    """A generator that always runs on the host, regardless of the requested device."""

    def __new__(cls, device: str = "cpu") -> HostGenerator:
        return super().__new__(cls, "cpu")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the calls that torch rejects without a driver, and the loop variants that cannot be simulated."""
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    to = nn.Module.to
    monkeypatch.setattr(
        nn.Module, "to", lambda self, *a, **k: moved(self) if a and str(a[0]) == "cuda" else to(self, *a, **k)
    )
    for module in (cases, check, bench):
        monkeypatch.setattr(module, "paths", lambda *_: ["torch"])
    for module in (heads, engine, serving, cases, check):
        monkeypatch.setattr(module, "choose_path", lambda *_: "torch")
    monkeypatch.setattr(exact, "DIFFUSION_STEPS", 4)
    monkeypatch.setattr(bench, "packed_attention", lambda *_: lambda: None)
    for name in ("graph_pool_handle", "empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1 << 30)


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast notices
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_tensor_of_a_part_is_on_the_right_device(part: Part, pretended: None) -> None:
    """Code that passes on a CPU may still mix host and device, and time on a borrowed GPU is too short to find out."""
    records: list[Record] = []
    args: Any = argparse.Namespace(
        device="cuda", quick=True, models=("mar-small", "fluid-small"), own_models=True, paths=("torch",),
        batches=(1, 2), mar_repo=None,
    )  # fmt: skip
    with PretendCuda(), waits(), torch.inference_mode():
        part.work(args, records.append)
    assert records and not [record for record in records if record.get("error") or record.get("ok") is False]
