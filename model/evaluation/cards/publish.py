"""Publish a training run: its checkpoint and a model card with loss curve, scores, sheets, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from model.checkpoint import checked_sizes, read_config
from model.config import ConfigError
from model.evaluation.cards import atlas, emoji, scenes
from model.evaluation.cards.facts import common_facts, read_json
from model.inference.requests import read_sampling
from model.networks.factory import config_from_json

SHEET_SCALE, SHEET_QUALITY = 0.75, 25  # of WebP: small for a repository, and good enough to see what was generated
SHEETS = ("sheet", "failures")
CardText = Callable[[dict[str, Any], dict[str, Any]], str]
# By the suites that were scored, the one whose settings and sheet come first in front.
CARDS: dict[tuple[str, ...], CardText] = {
    ("emoji",): emoji.card_text, ("scenes",): scenes.card_text, ("scenes", "breadth"): atlas.card_text,
}  # fmt: skip


def publish(
    run: Path, evaluations: Sequence[Path], out: Path, sampling: dict[str, Any], description: str,
    checkpoint: Path | None = None, examples: Sequence[str] = (),
) -> None:  # fmt: skip
    """Copy the run's checkpoint to `out`, add its sampling presets and scores, and write the card beside it.

    Nothing is written before all that it needs has been read.

    Args:
        evaluations: folders that `python -m model.evaluation` wrote, in any order: of the suite emoji, of scenes, or of
            scenes and breadth, whose sheets are called breadth-*.
        sampling: presets and defaults that the service will use (model/recipes/*-sampling.json).
        checkpoint: weights to publish, if they are not RUN/checkpoint, such as those of few_steps.
        examples: prompts that GET /v1/models and the playground offer.

    Raises:
        ConfigError: an evaluation or a report is missing or of other weights, no card is for these suites, or the
            sampling settings are beyond the model's limits.
    """
    source = checkpoint or run / "checkpoint"
    raw = read_config(source)
    scored = {suite_of(report): (folder, report) for folder, report in read_reports(evaluations, raw["sha256"])}
    suites = tuple(sorted(scored, reverse=True))
    if suites not in CARDS:
        known = "; ".join(" and ".join(names) for names in CARDS)
        raise ConfigError(f"no card is for the suites {' and '.join(suites)}: give evaluations of {known}")
    with checked_sizes(source):
        config = config_from_json(raw["model"])
    read_sampling(sampling, config)
    metrics = merged({suite: scored[suite][1] for suite in suites})
    raw["about"] |= {"description": description, "license": "Apache-2.0", "sampling": sampling, "metrics": metrics}
    raw["about"] |= {"examples": list(examples)} if examples else {}
    has_failures = (scored[suites[0]][0] / "failures.png").exists()  # an evaluation without any leaves no sheet of them
    text = CARDS[suites](common_facts(source, run, raw["about"], has_failures), raw["about"])
    history = read_json(run / "history.json")

    out.mkdir(parents=True, exist_ok=True)
    for suite, (folder, _) in scored.items():
        save_sheets(folder, out, "breadth-" if suite == "breadth" else "")
    plot_curve(history, raw["model"]["prediction"], out / "curve.png")
    for file in source.glob("*.safetensors"):
        shutil.copyfile(file, out / file.name)
    (out / "README.md").write_text(text, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_reports(evaluations: Sequence[Path], sha256: str) -> list[tuple[Path, dict[str, Any]]]:
    """The scores of each evaluation.

    Raises:
        ConfigError: one has no report, a damaged one, or one of other weights than these.
    """
    found = []
    for folder in evaluations:
        file = folder / "report.json"
        if not file.exists():
            raise ConfigError(f"{file} is missing: score the weights with `python -m model.evaluation --out {folder}`")
        report: dict[str, Any] = read_json(file)
        if report.get("checkpoint_sha256") != sha256:
            raise ConfigError(
                f"{file} has the scores of weights {report.get('checkpoint_sha256')}, not of {sha256}: score the "
                "weights that are published"
            )
        found.append((folder, report))
    return found


def merged(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The scores of several suites as one; what two have by one name, such as settings, is later ones' "SUITE_name"."""
    found: dict[str, Any] = {}
    for suite, report in reports.items():
        for key, value in report.items():
            twice = key in found and key != "checkpoint_sha256"
            found[f"{suite}_{key}" if twice else key] = value
    return found


def suite_of(report: dict[str, Any]) -> str:
    """The suite that a report is of."""
    return "breadth" if "breadth_trained" in report else "scenes" if "score_seen" in report else "emoji"


def save_sheets(evaluation: Path, out: Path, prefix: str) -> None:
    """Save an evaluation's sheets as WebP files of a tenth of their bytes, for the card in the repository."""
    for name in SHEETS:
        target, sheet = out / f"{prefix}{name}.webp", evaluation / f"{name}.png"
        target.unlink(missing_ok=True)
        if sheet.exists():
            with Image.open(sheet) as image:
                smaller = ImageOps.scale(image.convert("RGB"), SHEET_SCALE, Image.Resampling.LANCZOS)
                smaller.save(target, quality=SHEET_QUALITY, method=6)


def plot_curve(history: list[list[float]], prediction: str, file: Path) -> None:
    """Plot the training loss over steps, of a run's history.json."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([h[0] for h in history], [h[2] for h in history])
    axes.set(xlabel="step", ylabel=f"loss (mean square error of {prediction})", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=90)
    pyplot.close(figure)
