"""Progress on a terminal and in a log."""

import io
import sys

import pytest

from server.cli.progress import Status, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_changing_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm's own postfix once made it `starting , no live worker`."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Status("starting") as status:
        status.update("no live worker")
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "starting: no live worker [00:00]" in shown
    assert "\n" not in shown


def test_a_log_gets_one_line_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    """Five identical lines per second, while a model loads for a minute, hide the one that matters."""
    with Status("starting") as status:
        for reason in ("no gateway", "no live worker", "no live worker", "ready"):
            status.update(reason)
    with progress_bar("a cat", 4, "step") as bar:
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["starting: no gateway", "starting: no live worker", "starting: ready", "a cat: 4 steps"]
