"""Predictions by count: their counts are the code's, no time is below what the chip can do, and the page shows them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.gpu.cases import MODELS, head_case
from benchmarks.gpu.decide import PATHS
from model.networks.factory import build_model


@pytest.fixture
def times() -> Any:
    """Imported late: kernels defined while tests are collected would not be interpreted (tests/kernels/conftest.py)."""
    from benchmarks.gpu.prediction import times

    return times


@pytest.fixture
def page() -> Any:
    from benchmarks.gpu.prediction import page

    return page


@pytest.mark.slow
def test_the_page_shows_what_the_script_computes(page: Any) -> None:
    """After a changed count or a new measurement, regenerate it: python -m benchmarks.gpu.prediction.page"""
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text) == text


def test_a_step_has_the_flops_of_the_loop(times: Any) -> None:
    """As a call of the loop counts them: 3 guided rows, 5 steps."""
    case = head_case(MODELS["mar-b"], "cpu", 3, (5,))
    assert case.flops == 5 * times.head_flops(times.Head.of(MODELS["mar-b"]), 6)


@pytest.mark.parametrize("name", ["mar-b", "369M"])
def test_a_pass_has_a_product_for_each_matrix_of_the_backbone(name: str, times: Any) -> None:
    """All products together are 2 FLOPs a weight and token; what the text's side multiplies is not part of a pass."""
    config, known = MODELS[name], 128 if name == "mar-b" else 0
    with build_on_meta(name) as backbone:
        found = times._counted(name, known, True)
        evaluations = 2
        expected = 0
        for key, weight in backbone.named_parameters():
            if weight.ndim != 2 or not key.endswith("weight") or key.startswith(("classes", "aligner")):
                continue
            tokens = config.tokens
            if name == "mar-b":
                tokens = known + 64 if key.startswith("encoder.") or key.startswith("decoder_in") else 256 + 64
                tokens = 256 if key.startswith("token_in") else tokens
            if "cross_attn.kv" not in key:
                expected += 2 * evaluations * tokens * weight.numel()
    products = found.products + found.ours
    assert sum(2 * math.prod(shape) * count for shape, count in products.items()) == expected


class build_on_meta:
    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> Any:
        import torch

        with torch.device("meta"):
            return build_model(MODELS[self.name]).backbone

    def __exit__(self, *_: object) -> None:
        pass


def test_no_product_is_faster_than_its_assumptions_allow(times: Any) -> None:
    sizes = (1, 7, 64, 130, 1000, 41_000)
    for kind, rows, columns, inner in itertools.product(
        ("library", "ours"), sizes, (64, 1024, 20_480), (64, 768, 4096)
    ):
        most = {"library": times.LIBRARY, "ours": times.OURS}[kind] * inner / (inner + times.RAMP)
        assert 0 < times.share(kind, (rows, columns, inner)) <= most * (1 + 1e-9)


def test_no_step_is_faster_than_the_chip(times: Any) -> None:
    for name, device, m in itertools.product(("mar-b", "mar-h"), times.DEVICES, (2, 64, 4096)):
        head = times.Head.of(MODELS[name])
        for predicted in (times.loop_seconds, times.eager_seconds):
            assert predicted(head, m, device) > times.head_flops(head, m) / device.flops
        assert times.loop_seconds(head, m, device) <= times.loop_seconds(head, 2 * m, device)


def test_an_image_adds_up_and_gains_by_company(times: Any) -> None:
    """Together images are cheaper, never cheaper than their FLOPs; more memory bandwidth is never slower."""
    alone, many = (times.image("mar-b", batch, times.H100) for batch in (1, 64))
    assert alone.floor == pytest.approx(many.floor) and many.floor < many.total < alone.total
    assert times.image("mar-b", 64, times.H200).total <= many.total
    assert times.eager_image_seconds("mar-b", 64, times.H100) > many.total
    assert sum(times.padded_known(MODELS["mar-b"]).values()) == 64


def test_predictions_are_within_a_third_of_what_an_h200_measured(page: Any, times: Any) -> None:
    """A count that has lost a part of the work, or found it twice, would not be."""
    found = page.measured(times.H200)
    assert {("image by engine", "mar-b", 1), ("image by engine", "3.1B", 64), ("pass", "369M", 128)} < set(found)
    for line in page.compared()[2:]:
        assert 0.8 < float(line.split("|")[-2]) < 1.4, line
    many = times.image("mar-b", 64, times.H200)
    assert 0.4 < many.backbone / many.total < 0.75


@pytest.mark.slow
def test_the_plot_is_drawn(tmp_path: Path, page: Any) -> None:
    page.plot(tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 5000


def test_measurements_appear_in_the_right_cells(tmp_path: Path, page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are read back: a row of the loop is a token, which is two evaluations."""
    assert set(PATHS) - {"torch"} < set(page.LOOPS)
    parts = {
        "machine": {"records": [{"device": "NVIDIA H200"}]},
        "loop": {"records": [{"model": "mar-b", "rows": 4, "path": "triton", "us_per_step": 77.7}]},
        "images": {"records": [{"model": "mar-b", "batch": 64, "side": "engine", "seconds_per_image": 0.0555}]},
        "backbones": {"records": [{"model": "mar-b", "rows": 2, "static": True, "ms": 1.5}]},
    }
    (tmp_path / "gpu-first.json").write_text(json.dumps({"parts": parts}))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    [line] = [line for line in page.steps() if "77.7" in line]
    assert line.startswith("| H200 | 1024 x 6 | 8 |")
    found = page.measured(page.H200)
    assert found["image by engine", "mar-b", 64] == 0.0555 and found["pass", "mar-b", 2] == 0.0015
    assert page.measured(page.H100) == {} and any("55.5" in line for line in page.compared())
