"""What made-up measurements decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.decide import decide, image_seconds, read

ROWS = (1, 4, 16, 64, 256, 1024)
Times = dict[str, tuple[float, float]]  # path -> microseconds of a step: (whatever the rows, and for each row)


def results(times: Times, model: str = "mar-b") -> dict[str, Any]:
    parts: dict[str, Any] = {name: {"records": [], "error": None} for name in ("loop", "head", "image")}
    for path, (fixed, each) in times.items():
        parts["head"]["records"].append({"path": path, "model": model, "rows": 7, "ok": True})
        for rows in ROWS:
            step = {"path": path, "model": model, "rows": rows, "us_per_step": fixed + each * rows}
            parts["loop"]["records"].append(step)
    return {"parts": parts}


@pytest.mark.parametrize(("times", "auto"), [
    ({"torch": (500, 0.3), "triton": (50, 0.2)}, "triton"),
    ({"torch": (30, 0.2), "triton": (50, 0.2)}, "torch"),
    ({"torch": (40, 0.6), "triton": (50, 0.2)}, "triton"),  # slower for one image, by 20 %
    ({"torch": (500, 0.3), "triton": (50, 0.2), "deleted": (30, 0.2)}, "triton"),
    ({}, None),
])  # fmt: skip
def test_the_fastest_path_over_all_batches_becomes_auto(times: Times, auto: str | None) -> None:
    verdict = decide([results(times)])
    assert verdict.auto == auto
    assert verdict.lines()[-1].startswith(f"auto: {auto or 'not decided'}")


def test_a_fast_path_with_a_wrong_result_is_out() -> None:
    found = results({"torch": (500, 0.3), "triton": (50, 0.2)})
    found["parts"]["image"]["records"].append({"path": "triton", "dtype": "bfloat16", "ok": False})
    verdict = decide([found])
    assert set(verdict.wrong) == {"triton"} and verdict.auto == "torch"


def test_a_path_that_was_mended_comes_back() -> None:
    """A failed check once outweighed all later ones of its kind."""
    found = results({"torch": (500, 0.3), "triton": (50, 0.2)})
    parts = {ok: {"parts": {"image": {"records": [{"path": "triton", "ok": ok}]}}} for ok in (True, False)}
    assert decide([found, parts[False]]).auto == "torch"
    assert decide([found, parts[False], parts[True]]).auto == "triton"
    assert decide([found, parts[True], parts[False]]).auto == "torch"


def test_results_of_a_folder_are_read_by_date(tmp_path: Path) -> None:
    """By name alone, a second call of November counted as newer than a first one of December."""
    names = ("gpu-second-h200-2026-11-29", "gpu-first-h200-2026-12-24", "gpu-first-h200-2026-11-29", "gpu-first")
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    assert [each["name"] for each in read([tmp_path])] == [names[i] for i in (2, 0, 1, 3)]


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
    first, second = tmp_path / "gpu-first-h200-2026-11-29.json", tmp_path / "gpu-second.json"
    first.write_text(json.dumps(results({"torch": (500, 0.3), "triton": (50, 0.2)})))
    second.write_text(json.dumps(results({"torch": (20, 0.1)})))
    for places, auto in ([tmp_path], "torch"), ([first], "triton"), ([first, second], "torch"):
        assert main(["decide", *map(str, places)]) == 0
        said = capsys.readouterr().out
        assert f"auto: {auto}" in said and f"mar-b, 64 together: {auto}" in said
