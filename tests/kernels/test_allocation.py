"""Memory of freed tensors: kept for the next ones, unless somebody else has decided."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from fluid_kernels.allocation import ENVIRONMENT

# Page faults of twenty steps, each of which holds ten tensors of 8 MiB at once and frees them; two steps go before.
FAULTS = """
import resource, torch
from fluid_kernels.allocation import keep_freed_memory
kept = keep_freed_memory() if {keep} else None
for step in range(22):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2 << 20) for _ in range(10)]
    del held
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **environment: str) -> tuple[str, int]:
    """What `keep_freed_memory` returned in a process of its own, and the page faults that followed."""
    own = {name: value for name, value in os.environ.items() if name not in (*ENVIRONMENT, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_of_freed_tensors_is_kept_for_the_next_ones() -> None:
    """Every tensor of a step was mapped anew: a million page faults for 32 images."""
    (_, before), (kept, count) = faults(keep=False), faults(keep=True)
    assert before > 10_000, "nothing to keep: this test shows nothing"
    assert kept == "True" and count < before / 4


@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}]
)
def test_settings_of_the_environment_stay_as_they_are(environment: dict[str, str]) -> None:
    assert faults(keep=True, **environment)[0] == "False"
