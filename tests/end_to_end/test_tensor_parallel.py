"""One model on two processes behind HTTP: a killed rank costs no job, and the group starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from server.client import FluidClient
from tests.end_to_end.conftest import serving
from tests.server.harness import until

pytestmark = pytest.mark.slow
SEEDS = range(3)


def _ranks(port: str) -> list[int]:
    """Process ids of the worker's ranks, rank 0 first: children of the `fluid serve` on this port."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    [parent] = [pid for pid, _, args in rows if f"serve --port {port}" in args]
    return sorted(int(pid) for pid, owner, args in rows if owner == parent and args.endswith("server.cli worker"))


def test_a_killed_rank_costs_no_job(tmp_path: Path) -> None:
    place = {"FLUID_THREADS": "1", "FLUID_LEASE_S": "3", "FLUID_DEVICE": "cpu", "FLUID_DTYPE": "float32"}
    flags = ("--checkpoint", "atlas-128", "--tensor-parallel", "2")
    images: dict[int, bytes] = {}
    with serving(tmp_path, *flags, **place) as url, FluidClient(url, timeout_s=240) as client:
        before = _ranks(url.rpartition(":")[2])
        assert len(before) == 2

        def ask(seed: int) -> None:
            images[seed] = client.generate("a blue car", seed=seed, num_inference_steps=16)[0].data

        callers = [threading.Thread(target=ask, args=(seed,)) for seed in SEEDS]
        for caller in callers:
            caller.start()
        until(lambda: list(client.jobs(status="processing")), what="a running job")
        os.kill(before[1], signal.SIGKILL)
        for caller in callers:
            caller.join(timeout=240)
        assert sorted(images) == list(SEEDS)
        assert not set(before) & set(_ranks(url.rpartition(":")[2]))  # rank 0 has handed its jobs back and ended, too
