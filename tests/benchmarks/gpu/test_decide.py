"""What made-up measurements decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.decide import decide, image_seconds
from benchmarks.gpu.parts import NO_TIME

ROWS = (1, 4, 16, 64, 256, 1024)
Times = dict[str, tuple[float, float]]  # path -> microseconds of a step: (whatever the rows, and for each row)


def results(times: Times, model: str = "mar-b", **errors: str) -> dict[str, Any]:
    parts: dict[str, Any] = {name: {"records": [], "error": None} for name in ("loop", "head", "image")}
    parts |= {name: {"records": [], "error": error} for name, error in errors.items()}
    for path, (fixed, each) in times.items():
        parts["head"]["records"].append({"path": path, "model": model, "rows": 7, "ok": True})
        for rows in ROWS:
            step = {"path": path, "model": model, "rows": rows, "us_per_step": fixed + each * rows}
            parts["loop"]["records"].append(step)
    return {"parts": parts}


@pytest.mark.parametrize(("times", "auto", "keeps"), [
    ({"torch": (500, 0.3), "triton": (50, 0.2)}, "triton", None),
    ({"torch": (30, 0.2), "triton": (50, 0.2)}, "torch", None),
    ({"torch": (500, 0.3), "triton": (50, 0.2), "persistent": (30, 0.2)}, "persistent", True),
    ({"torch": (500, 0.3), "triton": (50, 0.2), "persistent": (40, 0.6)}, "triton", True),  # wins for one image by 20 %
    ({"torch": (500, 0.3), "triton": (50, 0.2), "persistent": (48, 0.6)}, "triton", False),
    ({}, None, None),
])  # fmt: skip
def test_the_fastest_path_over_all_batches_becomes_auto(times: Times, auto: str | None, keeps: bool | None) -> None:
    verdict = decide([results(times)])
    assert (verdict.auto, verdict.keep_persistent) == (auto, keeps)
    assert verdict.lines()[-1].startswith("persistent:" if times else "auto: not decided")


def test_a_fast_path_with_a_wrong_result_is_out() -> None:
    found = results({"torch": (500, 0.3), "triton": (50, 0.2), "persistent": (30, 0.2)})
    found["parts"]["image"]["records"].append({"path": "triton", "dtype": "bfloat16", "ok": False})
    found["parts"]["canary"] = {"records": [], "error": "killed after 20 s"}
    verdict = decide([found])
    assert set(verdict.wrong) == {"triton", "persistent"}
    assert verdict.auto == "torch" and verdict.keep_persistent is False


def test_a_part_that_had_no_time_says_nothing_about_its_path() -> None:
    verdict = decide([results({"torch": (500, 0.3), "triton": (50, 0.2)}, canary=NO_TIME)])
    assert verdict.wrong == {} and verdict.keep_persistent is None


def test_later_results_and_other_models_count_too() -> None:
    """One model's loss is weighed against the other's gain, by ratios."""
    slow, fast = {"torch": (50.0, 0.2), "triton": (60.0, 0.2)}, {"torch": (500.0, 0.3), "triton": (50.0, 0.2)}
    assert decide([results(slow)]).auto == "torch"
    assert decide([results(slow), results(fast, "mar-h")]).auto == "triton"
    assert decide([results(slow), results(fast)]).auto == "triton"  # the same model, measured again


def test_times_of_an_image_are_interpolated_and_never_guessed() -> None:
    """64 steps decide 256 tokens, each by 100 diffusion steps: 10 us a diffusion step and 4 us a token of it."""
    seconds = image_seconds({rows: 1e-6 * (10 + 4 * rows) for rows in ROWS}, 1)
    assert seconds == pytest.approx(1e-6 * (6400 * 10 + 25600 * 4))
    assert image_seconds({rows: 1e-6 for rows in (1, 4)}, 1) is None and image_seconds({}, 1) is None


def test_the_command_reads_both_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they were written, and with the card and the day in their names."""
    (tmp_path / "gpu-first-h200-2026-11-29.json").write_text(json.dumps(results({"torch": (500, 0.3), "triton": (50, 0.2)})))
    (tmp_path / "gpu-second.json").write_text(json.dumps(results({"persistent": (90, 0.2)})))
    assert main(["decide", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "auto: triton" in said and "persistent: goes" in said and "mar-b, 64 together: triton" in said
