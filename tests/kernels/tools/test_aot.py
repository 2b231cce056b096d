"""The ahead-of-time compile: what it finds wrong, and that it works on this machine.

`make kernels` compiles everything, for a minute or two; here is the kernel that uses most of what there is, in
processes of its own, because the interpreter that the other tests run under patches the language.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from fluid_kernels.loops.persistent_kernel import head_loop_kernel
from fluid_kernels.tools.aot import SHARED_LIMIT, TARGETS, find_faults
from fluid_kernels.tools.aot_cases import cases


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fluid_kernels.tools.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for_chips_that_are_not_here(target: str) -> None:
    done = _compile("--target", target, "--only", "1024 16x16x128")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "persistent 1024 16x16x128" in done.stdout and " 0 faulty" in done.stdout


def test_what_a_chip_cannot_give_is_a_fault() -> None:
    limit = SHARED_LIMIT["gfx942"]
    assert find_faults("gfx942", spilled=0, shared=limit, tensor_ops=1, dot=True) == ()
    assert find_faults("gfx942", spilled=8, shared=limit + 1, tensor_ops=0, dot=True) == (
        "spills 8", f"{limit + 1} bytes of shared memory, over {limit}", "no tensor-core instructions",
    )  # fmt: skip
    assert find_faults("sm_90", spilled=0, shared=0, tensor_ops=0, dot=False) == ()


@pytest.mark.parametrize("backend", ["cuda", "hip"])
def test_cases_have_the_arguments_of_their_kernels(backend: str) -> None:
    """All of them, under names that tell them apart: two of one name were once compiled as the first of them, twice."""
    found = list(cases(backend))
    assert len({case.name for case in found}) == len(found)
    for case in found:
        assert {*case.arguments, *case.constants} == set(case.kernel.arg_names), case.name


@pytest.mark.parametrize("backend", ["cuda", "hip"])
def test_kernels_that_wait_are_held_to_release_and_acquire(backend: str) -> None:
    """An atomic add of 0, there for its acquire alone, was dropped by the compiler because nobody used its result:
    programs could have read from their own cache what another had long overwritten."""
    assert all(case.waits == (case.kernel is head_loop_kernel) for case in cases(backend))
