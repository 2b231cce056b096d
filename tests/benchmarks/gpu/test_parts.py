"""Parts of a measurement on a borrowed device: one that fails, hangs, crashes or floods must not affect the others."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import parts as runner
from benchmarks.gpu.parts import KEPT_OUTPUT, NO_TIME, UNFINISHED, Emit, Part, attempt, failures, run_parts


def good(args: Any, emit: Emit) -> None:
    emit({"case": args, "ms": 1.5})


def raises(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    raise RuntimeError("an illegal memory access was encountered")


def dies(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    ctypes.string_at(0)


def hangs(args: Any, emit: Emit) -> None:
    """Ignore what can be ignored, with a child that outlives a plain kill of this process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    emit({"case": "before", "child": subprocess.Popen(["sleep", "600"]).pid})
    threading.Event().wait()


def floods(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    while True:
        print("warning: " * 1000)


def closes(args: Any, emit: Emit) -> None:
    """Close the output and stay: the reader sees its end long before the part's."""
    emit({"case": "before"})
    sys.stdout.close()
    os.close(2)
    threading.Event().wait()


def finds(args: Any, emit: Emit) -> None:
    with attempt(emit, {"case": "x"}) as record:
        record["ok"] = False
    with attempt(emit, {"case": "y"}):
        raise ValueError("too wide")
    emit({"case": "z", "text": "long" * 100_000})


BROKEN = {
    "raises": (raises, "RuntimeError: an illegal memory access was encountered"),
    "dies": (dies, f"exit status {-signal.SIGKILL}"), "crashes": (crashes, f"exit status {-signal.SIGSEGV}"),
    "hangs": (hangs, "killed after 2 s"), "floods": (floods, "killed after 2 s"),
    "closes": (closes, "killed after 2 s"),
}  # fmt: skip


def test_a_broken_part_costs_nothing_but_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = [Part(name, 2.4 if "killed" in error else 60, work) for name, (work, error) in BROKEN.items()]
    parts = [*alone, Part("finds", 60, finds), Part("good", 60, good)]
    folder = tmp_path / "kept"
    result = run_parts(parts, 7, folder, "x", 120)
    assert json.loads((folder / "x.json").read_text()) == result
    found = {name: (outcome["records"], outcome["error"]) for name, outcome in result["parts"].items()}
    for name, (_, error) in BROKEN.items():
        assert found[name][0][0]["case"] == "before" and found[name][1] == error, name
    assert found["good"] == ([{"case": 7, "ms": 1.5}], None)
    assert [line.split(":")[0] for line in failures(result)] == [*BROKEN, "finds", "finds", "finds"]
    assert found["finds"][0][1] == {"case": "y", "error": "ValueError: too wide"}
    child = found["hangs"][0][0]["child"]
    assert not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) < len(parts) * 3 * KEPT_OUTPUT
    assert "Segmentation fault" in (folder / "x.log").read_text(errors="replace")
    assert len(capfd.readouterr().out) < 20_000


def test_a_second_start_runs_what_is_not_done(tmp_path: Path) -> None:
    parts = [Part("first", 60, good), Part("broken", 60, raises), Part("last", 60, good)]
    run_parts(parts, 1, tmp_path, "x", 60)
    with (tmp_path / "x.jsonl").open("a") as stream:  # a start that was killed inside a part, in the middle of a line
        stream.write('{"part": "last", "begin": 1}\n{"part": "last", "record": {"ca')
    assert runner.Journal(tmp_path / "x.jsonl").outcomes()["last"]["error"] == UNFINISHED
    result = run_parts([parts[0], Part("broken", 60, good), parts[2]], 2, tmp_path, "x", 60)
    assert {name: part["records"][0]["case"] for name, part in result["parts"].items()} == {
        "first": 1, "broken": 2, "last": 2,
    }  # fmt: skip
    assert failures(result) == []
    again = run_parts(parts, 3, tmp_path, "x", 60, again=["first"])
    assert again["parts"]["first"]["records"][0]["case"] == 3 and again["parts"]["last"]["records"][0]["case"] == 2


def test_a_start_that_is_killed_leaves_its_records_and_no_process(tmp_path: Path) -> None:
    code = (
        "from tests.benchmarks.gpu.test_parts import *\n"
        f"run_parts([Part('good', 60, good), Part('hangs', 600, hangs)], 5, Path({str(tmp_path)!r}), 'x', 600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    journal = runner.Journal(tmp_path / "x.jsonl")
    while not journal.outcomes().get("hangs", {}).get("records"):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    outcomes = journal.outcomes()
    assert outcomes["good"]["records"] == [{"case": 5, "ms": 1.5}] and outcomes["hangs"]["error"] == UNFINISHED
    os.kill(outcomes["hangs"]["records"][0]["child"], signal.SIGKILL)  # its parent, the part, has ended already


def test_a_process_that_cannot_be_killed_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a driver a process may not react to SIGKILL; `join` without a limit then waited for it."""
    monkeypatch.setattr(runner, "KILL_WAIT_S", 0.2)
    pids = []
    monkeypatch.setattr(runner.os, "killpg", lambda pid, _: pids.append(pid))
    kill = os.kill
    monkeypatch.setattr(runner.os, "kill", lambda pid, _: None)
    result = run_parts([Part("hangs", 0.5, hangs), Part("good", 60, good)], 1, tmp_path, "x", 60)
    for pid in (pids[0], result["parts"]["hangs"]["records"][0]["child"]):
        kill(pid, signal.SIGKILL)
    os.waitpid(pids[0], 0)
    assert "still there" in result["parts"]["hangs"]["error"] and result["parts"]["good"]["error"] is None


def test_parts_without_time_left_report_it(tmp_path: Path) -> None:
    result = run_parts([Part("good", 60, good)], 1, tmp_path, "x", 0.0)
    assert result["parts"]["good"]["error"] == NO_TIME
