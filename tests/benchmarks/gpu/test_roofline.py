"""The roofline model: its counts, and that docs/roofline.md shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import roofline
from benchmarks.gpu.cases import MODELS, head_case
from benchmarks.gpu.roofline import DEVICES, HEADS, VARIANTS, Head, flops, step_seconds


def test_the_page_shows_what_the_script_computes() -> None:
    """After a changed count or a new measurement, regenerate the page: python -m benchmarks.gpu.roofline"""
    text = roofline.PAGE.read_text(encoding="utf-8")
    assert roofline.page(text) == text


def test_the_formula_counts_the_flops_of_the_loop() -> None:
    """It agrees with the FLOPs of a call as the benchmarks count them: 3 guided rows, 5 steps."""
    config = MODELS["mar-b"]
    case = head_case(config, "cpu", 3, (5,))
    assert case.flops == 5 * flops(Head(config.head_width, config.head_depth), 6)
    weights = case.weights
    total = sum(t.numel() for t in (weights.up, weights.down, weights.modulation, weights.final_modulation))
    assert 2 * (total + weights.token_in.numel() + weights.out.numel()) == flops(Head(1024, 6), 1)


@given(st.sampled_from(HEADS), st.sampled_from(DEVICES), st.sampled_from(VARIANTS), st.integers(1, 8192))
def test_no_prediction_is_faster_than_the_peak(head: Head, device: roofline.Device, variant: str, m: int) -> None:
    seconds = step_seconds(variant, head, m, device)
    assert flops(head, m) / device.flops < seconds
    assert seconds <= step_seconds(variant, head, 2 * m, device) * 1.01


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    roofline.plot(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 5000


def test_measured_steps_appear_in_the_right_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of gpu-bench are read back: its rows are tokens, which are two evaluations each here."""
    record = '{"model": "mar-b", "rows": 4, "variant": "triton", "us_per_step": 77.7}'
    machine = '{"records": [{"device": "NVIDIA H200"}]}'
    text = f'{{"parts": {{"machine": {machine}, "head": {{"records": [{record}]}}}}}}'
    (tmp_path / "gpu-bench-2030-01-01.json").write_text(text)
    monkeypatch.setattr(roofline, "RESULTS", tmp_path)
    [line] = [line for line in roofline.predicted_table(DEVICES[0]) if "77.7" in line]
    assert line.startswith("| 1024 x 6 | 8 |") and "77.7" not in "".join(roofline.predicted_table(DEVICES[1]))
