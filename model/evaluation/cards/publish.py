"""Publish a training run: its checkpoint and a model card with loss curve, scores, sheets, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from model.checkpoint import read_config
from model.config import ConfigError
from model.evaluation.cards import atlas, emoji, scenes
from model.evaluation.cards.facts import common_facts

SHEET_SCALE, SHEET_QUALITY = 0.75, 25  # of WebP: small for a repository, and good enough to see what was generated
SHEETS = ("sheet", "failures")
CardText = Callable[[dict[str, Any], dict[str, Any]], str]


def publish(
    run: Path, evaluations: Sequence[Path], out: Path, sampling: dict[str, Any], description: str,
    checkpoint: Path | None = None,
) -> None:  # fmt: skip
    """Copy the run's checkpoint to `out`, add its sampling presets and scores, and write the card beside it.

    Args:
        evaluations: folders that `python -m model.evaluation` wrote, one per suite; sheets of the second and later ones
            are called by its suite.
        sampling: presets and defaults that the service will use (model/recipes/*-sampling.json).
        checkpoint: weights to publish, if they are not RUN/checkpoint, such as those of few_steps.

    Raises:
        ConfigError: an evaluation is missing, or is of other weights.
    """
    source = checkpoint or run / "checkpoint"
    reports = [read_report(folder, read_config(source)["sha256"]) for folder in evaluations]
    metrics = {key: value for report in reversed(reports) for key, value in report.items()}
    out.mkdir(parents=True, exist_ok=True)
    for file in (*source.glob("*.safetensors"), source / "config.json"):
        shutil.copyfile(file, out / file.name)
    raw = read_config(out)
    raw["about"] |= {"description": description, "license": "Apache-2.0", "sampling": sampling, "metrics": metrics}
    (out / "config.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for folder, report in zip(evaluations, reports, strict=True):
        save_sheets(folder, out, "" if report is reports[0] else f"{suite_of(report)}-")
    plot_curve(run, out / "curve.png")
    text = card_of(metrics)(common_facts(out, run, metrics), raw["about"])
    (out / "README.md").write_text(text, encoding="utf-8")


def read_report(evaluation: Path, sha256: str) -> dict[str, Any]:
    """The scores of an evaluation.

    Raises:
        ConfigError: there is no report, or it is of other weights than these.
    """
    file = evaluation / "report.json"
    if not file.exists():
        raise ConfigError(
            f"{file} is missing: score the checkpoint with `python -m model.evaluation --out {evaluation}`"
        )
    report: dict[str, Any] = json.loads(file.read_text())
    if report.get("checkpoint_sha256") != sha256:
        raise ConfigError(
            f"{file} has the scores of weights {report.get('checkpoint_sha256')}, not of {sha256}: score the checkpoint "
            "that is published"
        )
    return report


def suite_of(report: dict[str, Any]) -> str:
    """The suite that a report is of."""
    return "breadth" if "breadth_trained" in report else "scenes" if "score_seen" in report else "emoji"


def card_of(metrics: dict[str, Any]) -> CardText:
    """The card for these scores: atlas for scenes and breadth together."""
    if "breadth_trained" in metrics and "score_seen" in metrics:
        return atlas.card_text
    return scenes.card_text if "score_seen" in metrics else emoji.card_text


def save_sheets(evaluation: Path, out: Path, prefix: str) -> None:
    """Save an evaluation's sheets as WebP files of a tenth of their bytes, for the card in the repository."""
    for name in SHEETS:
        target, sheet = out / f"{prefix}{name}.webp", evaluation / f"{name}.png"
        target.unlink(missing_ok=True)
        if not sheet.exists():  # an evaluation without failures leaves no sheet of them
            continue
        with Image.open(sheet) as image:
            smaller = ImageOps.scale(image.convert("RGB"), SHEET_SCALE, Image.Resampling.LANCZOS)
            smaller.save(target, quality=SHEET_QUALITY, method=6)


def plot_curve(run: Path, file: Path) -> None:
    """Plot the training loss over steps from the run's history.json."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    history = json.loads((run / "history.json").read_text())
    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([h[0] for h in history], [h[2] for h in history])
    axes.set(xlabel="step", ylabel="loss (mean square error of v)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
