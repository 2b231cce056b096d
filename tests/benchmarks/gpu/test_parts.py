"""Parts of a measurement on a borrowed device: a part that fails, hangs or crashes must not affect the others."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, Record, attempt, failures, run_parts

Emit = Callable[[Record], None]


def good(args: Any, emit: Emit) -> None:
    emit({"case": args, "ms": 1.5})


def raises(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    raise RuntimeError("an illegal memory access was encountered")


def dies(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(args: Any, emit: Emit) -> None:
    emit({"case": "before"})
    threading.Event().wait()


def finds(args: Any, emit: Emit) -> None:
    with attempt(emit, {"case": "x"}) as record:
        record["ok"] = False
    with attempt(emit, {"case": "y"}):
        raise ValueError("too wide")


def test_a_failing_part_does_not_affect_the_others(tmp_path: Path) -> None:
    parts = [
        Part("raises", 60, raises), Part("dies", 60, dies), Part("hangs", 0.5, hangs), Part("finds", 60, finds),
        Part("good", 60, good),
    ]  # fmt: skip
    file = tmp_path / "kept" / "result.json"
    result = run_parts(parts, 7, file, 120)
    assert json.loads(file.read_text()) == result
    found = {name: (outcome["records"], outcome["error"]) for name, outcome in result["parts"].items()}
    assert found["raises"] == ([{"case": "before"}], "RuntimeError: an illegal memory access was encountered")
    assert found["dies"] == ([{"case": "before"}], "exit status -9")
    assert found["hangs"] == ([{"case": "before"}], "killed after 0 s")
    assert found["good"] == ([{"case": 7, "ms": 1.5}], None)
    assert [line.split(":")[0] for line in failures(result)] == ["raises", "dies", "hangs", "finds", "finds"]
    assert found["finds"][0][1] == {"case": "y", "error": "ValueError: too wide"}


def test_parts_without_time_left_report_it(tmp_path: Path) -> None:
    result = run_parts([Part("good", 60, good)], 1, tmp_path / "r.json", 0.0)
    assert result["parts"]["good"]["error"] == "no time was left"
