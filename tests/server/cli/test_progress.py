"""What a waiting person reads on a terminal, and what a log file keeps."""

import io
import sys

import pytest

from server.cli.progress import Status, steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once read `starting , no live worker`."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Status("starting") as status:
        status.say("no live worker")
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "starting: no live worker [00:00]" in shown
    assert "\n" not in shown


def test_a_log_gets_a_line_per_change(capsys: pytest.CaptureFixture[str]) -> None:
    """Five identical lines per second for a model that loads for a minute hide the one that matters."""
    with Status("starting") as status:
        for reason in ("no gateway", "no live worker", "no live worker", "ready"):
            status.say(reason)
    with steps("a cat", 4) as bar:
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["starting: no gateway", "starting: no live worker", "starting: ready", "a cat: 4 steps"]
