"""Kernels run here by Triton's interpreter, and nowhere else.

Whether a kernel is interpreted is decided when it is defined, Triton's own included; the wrappers ask again when they
are called. So the first import happens here, and the variable is set for the tests of this folder alone: where it
stayed, servers and benchmarks that other tests start would take the interpreter for a device, and crawl.
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
