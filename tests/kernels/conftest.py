"""Run the kernels of this folder's tests, and of no others, in Triton's interpreter.

Whether a kernel is interpreted is fixed at its definition, Triton's own included; the wrappers check at each call. So
the first import happens here, and the variable is set for this folder's tests only: servers and benchmarks that other
tests start would inherit it, mistake the interpreter for a device, and crawl.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import pytest

VARIABLE = "TRITON_INTERPRET"

if importlib.util.find_spec("triton") is not None:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    importlib.import_module("fluid_kernels.tools.aot_cases")  # imports every kernel
    os.environ.pop(VARIABLE)
    if before is not None:
        os.environ[VARIABLE] = before


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
