"""The check of single operations for a device: rehearsed in the interpreter, and shown to fail."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from fluid_kernels.tools import check


def test_every_operation_passes_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--device", "cpu", "--quick"]) == 0
    said = capsys.readouterr().out
    for name in ("linear silu", "gated residual", "ln modulate", "modulation", "head out", "token in", "update eps"):
        assert f"\n{name}" in f"\n{said}", name


@pytest.mark.parametrize("apart", [0.5, float("nan")])
def test_a_large_or_nan_error_fails(
    apart: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "checks", lambda *_: [check.Check("made up", lambda: apart, 0.1)])
    assert check.main(["--device", "cpu"]) == 1 and "TOO FAR" in capsys.readouterr().out
