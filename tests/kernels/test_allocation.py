"""Memory of freed tensors: kept for the next ones, unless somebody else has decided."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fluid_kernels.allocation import ENVIRONMENT

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="of glibc 2.33 or later")

# Bytes that ten tensors of 8 MiB have outside the heap, and bytes that the heap keeps of them when they are freed.
HELD = """
import ctypes, torch
from fluid_kernels.allocation import keep_freed_memory
torch.ones(8)
info = ctypes.CDLL(None).mallinfo2
info.restype = type("Info", (ctypes.Structure,), {{"_fields_": [(f"f{{n}}", ctypes.c_size_t) for n in range(10)]}})
kept = keep_freed_memory() if {keep} else None
before = info()
held = [torch.ones(2 << 20) for _ in range(10)]
mapped = info().f4 - before.f4
del held
print(kept, mapped >> 20, (info().f8 - before.f8) >> 20)
"""


def held(keep: bool, **environment: str) -> tuple[str, int, int]:
    """What `keep_freed_memory` returned in a process of its own, then MiB outside the heap, and MiB kept by it."""
    own = {name: value for name, value in os.environ.items() if name not in (*ENVIRONMENT, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", HELD.format(keep=keep)]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    kept, mapped, free = done.stdout.split()
    return kept, int(mapped), int(free)


def test_memory_of_freed_tensors_is_kept_for_the_next_ones() -> None:
    """Every tensor of a step was mapped anew: a million page faults for 32 images."""
    assert held(keep=False)[1] >= 80, "nothing is mapped: this test shows nothing"
    kept, mapped, free = held(keep=True)
    assert kept == "True" and mapped == 0 and free >= 75


@pytest.mark.parametrize(
    "environment", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}]
)
def test_settings_of_the_environment_stay_as_they_are(environment: dict[str, str]) -> None:
    assert held(keep=True, **environment)[0] == "False"
