"""The ahead-of-time compile: its limits, its cases, and one compilation per target.

`make kernels` compiles everything in a minute or two; here only one product with an epilogue is compiled, in a
process of its own, because the interpreter that the other tests run under patches the language.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from fluid_kernels.tools.aot import SHARED_LIMIT, TARGETS, find_faults
from fluid_kernels.tools.aot_cases import cases


def _compile(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fluid_kernels.tools.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for_other_chips(target: str) -> None:
    done = _compile("--target", target, "--only", "gated residual bf16 128x64x64")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gated residual bf16 128x64x64" in done.stdout and " 0 faulty" in done.stdout


def test_exceeded_limits_are_faults() -> None:
    limit = SHARED_LIMIT["gfx942"]
    assert find_faults("gfx942", spilled=0, shared=limit, tensor_ops=1, dot=True) == ()
    assert find_faults("gfx942", spilled=8, shared=limit + 1, tensor_ops=0, dot=True) == (
        "spills 8", f"{limit + 1} bytes of shared memory, over {limit}", "no tensor-core instructions",
    )  # fmt: skip
    assert find_faults("sm_90", spilled=0, shared=0, tensor_ops=0, dot=False) == ()


@pytest.mark.parametrize("backend", ["cuda", "hip"])
def test_cases_have_the_arguments_of_their_kernels(backend: str) -> None:
    """Cases have every argument, and unique names: of two with one name, the first used to be compiled twice."""
    found = list(cases(backend))
    assert len({case.name for case in found}) == len(found)
    for case in found:
        assert {*case.arguments, *case.constants} == set(case.kernel.arg_names), case.name
