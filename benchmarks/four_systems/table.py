"""What the runs reported, beside the paper's figures, and a power law through the scaling curve."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.four_systems.runs import SIZES, SYSTEMS

# FID-30K and GenEval of Fig. 2 of the paper (arXiv 2410.13863), read off the figure to ±0.02 and ±0.003, at its
# smallest size (0.15B discrete, 0.165B continuous) and at 1.04B and 1.1B.
PAPER: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "random-continuous": ((8.42, 0.481), (6.59, 0.667)),
    "random-discrete": ((8.40, 0.530), (7.37, 0.660)),
    "raster-continuous": ((8.64, 0.431), (7.19, 0.531)),
    "raster-discrete": ((8.06, 0.509), (6.94, 0.605)),
}
SCORES = ("score_seen", "score_unseen", "r_precision", "feature_distance", "seconds_per_image")


def collect(runs: Path, curve: Path | None = None) -> dict[str, Any]:
    """The reports of all runs that have one, and the fit of the scaling curve if all its sizes are there.

    Args:
        curve: folder of the runs of the scaling curve, if they are others than the system's; as they need equal steps
            and no suite, a curve of shorter runs is worth something too.
    Returns:
        "runs" by system and "sizes" by size of the curve, "tokenizer-vq", and "scaling", the fit.
    """
    sizes = _reports(curve or runs, SIZES)
    result: dict[str, Any] = {"runs": _reports(runs, SYSTEMS), "sizes": sizes}
    if file := _read(runs / "tokenizer-vq" / "report.json"):
        result["tokenizer-vq"] = file
    points = [(report["parameters"], report["loss"]) for report in sizes.values() if "loss" in report]
    if len(points) >= 3:
        result["scaling"] = power_law(*zip(*points, strict=True))
    return result


def _reports(runs: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: report for name in names if (report := _report(runs / name))}


def _report(run: Path) -> dict[str, Any]:
    loss, suite = _read(run / "loss.json"), _read(run / "scenes" / "report.json")
    config = _read(run / "checkpoint" / "config.json")
    training = {f"trained_{key}": config["about"]["training"][key] for key in ("steps", "minutes")} if config else {}
    return {**loss, **training, **{key: suite[key] for key in SCORES if key in suite}}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def power_law(parameters: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Least squares of ln loss = ln a + b·ln parameters.

    Returns:
        "exponent" b, "factor" a, and "r2", the share of the variance of ln loss that the line explains. Three points
        leave one degree of freedom: the fit describes them and proves no law.
    """
    x, y = np.log(parameters), np.log(losses)
    exponent, intercept = np.polyfit(x, y, 1)
    rest = y - (intercept + exponent * x)
    spread = float(((y - y.mean()) ** 2).sum())
    return {
        "exponent": round(float(exponent), 5),
        "factor": round(math.exp(intercept), 5),
        "r2": round(1 - float((rest**2).sum()) / spread, 5) if spread else 1.0,
        "points": len(x),
    }


def _cell(report: dict[str, Any], key: str, form: str) -> str:
    value = report.get(key)
    return "-" if value is None else format(value, form)


def print_tables(result: dict[str, Any]) -> None:
    """Print Markdown: the systems beside the paper's, and the scaling curve."""
    print("| system | M parameters | steps | loss seen / unseen | suite seen / unseen | R-precision | distance "
          "| s/image | paper's FID, GenEval at 0.15B | at 1.1B |")  # fmt: skip
    print("|---" * 10 + "|")
    for name in SYSTEMS:
        r, paper = result["runs"].get(name, {}), PAPER[name]
        size = f"{r['parameters'] / 1e6:.2f}" if "parameters" in r else "-"  # not before its loss is measured
        ours = [
            size, _cell(r, "trained_steps", "d"),
            f"{_cell(r, 'loss_seen', '.4f')} / {_cell(r, 'loss_unseen', '.4f')}",
            f"{_cell(r, 'score_seen', '.1%')} / {_cell(r, 'score_unseen', '.1%')}",
            _cell(r, "r_precision", ".1%"), _cell(r, "feature_distance", ".1f"), _cell(r, "seconds_per_image", ".3f"),
        ]  # fmt: skip
        theirs = [f"{fid:.2f}, {geneval:.3f}" for fid, geneval in paper]
        print(f"| {' | '.join([name, *ours, *theirs])} |")
    print("\n| random order, continuous tokens | M parameters | steps | loss seen / unseen |\n|---|---|---|---|")
    for name in SIZES:
        if "parameters" in (r := result["sizes"].get(name, {})):
            losses = f"{_cell(r, 'loss_seen', '.4f')} / {_cell(r, 'loss_unseen', '.4f')}"
            print(f"| {name} | {r['parameters'] / 1e6:.2f} | {_cell(r, 'trained_steps', 'd')} | {losses} |")
    if fit := result.get("scaling"):
        print(f"\nloss = {fit['factor']:g} · parameters^{fit['exponent']:g}, R² {fit['r2']:.4f}, "
              f"{fit['points']} points")  # fmt: skip
    if codes := result.get("tokenizer-vq"):
        print(f"\ndiscrete tokenizer: {json.dumps(codes)}")
