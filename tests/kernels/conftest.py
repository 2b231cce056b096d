"""Run the kernels of this folder's tests, and of no others, in Triton's interpreter.

The wrappers check at each call, so the variable is set for this folder's tests only: servers and benchmarks that other
tests start would inherit it, mistake the interpreter for a device, and crawl.
"""

from __future__ import annotations

import pytest

from tests import interpreted_kernels

interpreted_kernels.define()


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(interpreted_kernels.VARIABLE, "1")
