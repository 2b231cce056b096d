"""Scores of a scenes checkpoint: `python -m model.evaluation --suite scenes`.

Prints a table of GenEval's categories (scene_questions.py), then one JSON object. It also scores the detector
itself: the share of real renders that it accepts (`checker_ceiling`, also after JPEG compression) and the share of
renders with one false fact that it rejects (`checker_reject`). `style` is the share of images whose things, whatever
they are, are mostly in the stated style. R-precision and a feature distance to real renders do not use the detector.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.contact_sheet import contact_sheet
from model.data.fixed_sample import holds_styles_out
from model.data.scenes.compose import SIZE
from model.data.scenes.facts import SCORED_CATEGORIES, Facts, Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import STYLES
from model.evaluation.detector import WEIGHTS, Detector, DetectorError, load_detector
from model.evaluation.features import CANDIDATES, FEATURES_NAME, Features
from model.evaluation.generation import check_size, generate_images
from model.evaluation.scene_questions import (
    Question,
    by_style,
    falsified,
    is_correct,
    is_in_style,
    percent,
    questions,
    renders,
    scores_by_category,
)  # fmt: skip
from model.inference.requests import Sampling
from model.inference.serving import ServingEngine
from model.networks.tokenizer import to_pixels

RENDER_SEED = 20241023
JPEG_QUALITY = 40  # a corruption that the detector was not trained with


@dataclass
class SceneBenchmark:
    """Questions, and the detector that scores images against them; loaded once for several sampling settings."""

    sprites: Sprites
    detector: Detector
    detector_sha256: str
    grammar: Grammar
    asked: list[Question]

    @classmethod
    def load(
        cls,
        data: Path,
        detector_folder: Path,
        per_category: int,
        vocabulary: Sequence[str] = (),
        styles_held_out: bool = True,
    ) -> SceneBenchmark:
        """Load sprites and detector, and choose the questions.

        Args:
            vocabulary: names of the things that the checkpoint knows: no question is of any other; (): of all things.
            styles_held_out: it was not trained on things in held-out styles.

        Raises:
            DataError, DetectorError: `data` holds no sprites or makes fewer prompts, or `detector_folder` holds no
                detector of these things.
        """
        sprites, detector = Sprites.load(data), load_detector(detector_folder)
        digest = hashlib.sha256((detector_folder / WEIGHTS).read_bytes()).hexdigest()
        things = tuple(t for t in detector.things if not vocabulary or t in vocabulary)
        if not things:
            raise DetectorError(f"the detector in {detector_folder} knows nothing that the checkpoint draws")
        grammar = Grammar(sprites, things, STYLES)
        return cls(sprites, detector, digest, grammar, questions(grammar, per_category, styles_held_out))

    def score(self, facts: list[Facts], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each of (P, H, W, 3) images, whether it shows the facts at the same position, and their style.

        Returns:
            Two (P,) bool.
        """
        found = self.detector.detect(to_pixels(torch.from_numpy(images)))
        correct = [is_correct(f, detections, image) for f, detections, image in zip(facts, found, images, strict=True)]
        style = [is_in_style(f, detections) for f, detections in zip(facts, found, strict=True)]
        return np.array(correct), np.array(style)

    def detector_scores(self) -> dict[str, float]:
        """Scores of the detector itself, on renders whose answer is known."""
        facts = [q.facts for q in self.asked]
        rng = np.random.default_rng(RENDER_SEED)
        false_facts = [falsified(f, self.grammar, rng) for f in facts]
        true, false = renders(facts, self.sprites, RENDER_SEED), renders(false_facts, self.sprites, RENDER_SEED + 1)
        accepted, style = self.score(facts, true)
        report = {  # names as in the metrics of shipped checkpoints
            "checker_ceiling": float(accepted.mean()),
            "checker_ceiling_jpeg": float(self.score(facts, np.stack([_jpeg(image) for image in true]))[0].mean()),
            "checker_reject": float(1 - self.score(facts, false)[0].mean()),
            "style_ceiling": float(style.mean()),
        }
        for category in SCORED_CATEGORIES:
            mine = np.array([f.category == category for f in facts])
            report[f"{category}_ceiling"] = float(accepted[mine].mean())
        return report


def _jpeg(image: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(out).convert("RGB"))


def nearest_is_own(query: Tensor, real: Tensor, seed: int = 0) -> np.ndarray:
    """For each query, whether the nearest of CANDIDATES renders is its own; (P,) bool, whose mean is R-precision@1.

    Args:
        query, real: (P, F) unit vectors; row i of both belongs to prompt i.
    """
    hits = np.zeros(len(query), bool)
    for row in range(len(query)):
        rng = np.random.default_rng((seed, row))
        others = [i for i in rng.choice(len(real), min(CANDIDATES, len(real)), replace=False).tolist() if i != row]
        rows = torch.tensor([row, *others[: CANDIDATES - 1]])
        hits[row] = int((real[rows] @ query[row]).argmax()) == 0
    return hits


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x·y + 1)³ as in KID (arXiv 1801.01401), times 1000.

    Args:
        a, b: (P, F) unit vectors; row i of both belongs to prompt i.
    """

    def between(x: Tensor, y: Tensor) -> float:
        k = (x @ y.T + 1) ** 3
        return float((k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1)))

    # Row i of both sets has the same prompt, so the diagonal has no independent pairs there either.
    return 1000 * (between(a, a) + between(b, b) - 2 * between(a, b))


def evaluate_scenes(
    engine: ServingEngine, benchmark: SceneBenchmark, settings: Sampling, images: int,
    detector_scores: dict[str, float], seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:  # fmt: skip
    """Generate `images` images per question and score them.

    Returns:
        The report, the images (questions, images, H, W, 3) uint8, and which are correct (questions, images) bool.
    """
    asked = benchmark.asked
    prompts = [q.prompt for q in asked for _ in range(images)]
    start = time.perf_counter()
    generated = generate_images(engine, prompts, settings, seed)
    seconds = (time.perf_counter() - start) / len(prompts)
    correct, style = benchmark.score([q.facts for q in asked for _ in range(images)], generated)
    correct = correct.reshape(len(asked), images)
    generated = generated.reshape(len(asked), images, *generated.shape[1:])

    extractor, facts = Features(), [q.facts for q in asked]
    real = [extractor(to_pixels(torch.from_numpy(renders(facts, benchmark.sprites, RENDER_SEED + n)))) for n in (2, 3)]
    first = extractor(to_pixels(torch.from_numpy(np.ascontiguousarray(generated[:, 0]))))
    report: dict[str, Any] = {**scores_by_category(asked, correct.mean(1)), **detector_scores}
    report |= by_style(asked, "style", style.reshape(len(asked), images).mean(1))
    report |= by_style(asked, "r_precision", nearest_is_own(first, real[0]))
    report["r_precision_ceiling"] = float(nearest_is_own(real[1], real[0]).mean())
    report["feature_distance"] = feature_distance(first, real[0])
    report["feature_distance_floor"] = feature_distance(real[1], real[0])
    report = {key: value if value is None else round(value, 4) for key, value in report.items()}
    report |= {
        "features": FEATURES_NAME, "candidates": min(CANDIDATES, len(asked)), "seconds_per_image": round(seconds, 4),
        "images": len(prompts), "prompts": len(asked), "date": datetime.date.today().isoformat(),
        "settings": asdict(settings),
        "checkpoint_sha256": engine.checkpoint.sha256, "checker_sha256": benchmark.detector_sha256,
    }  # fmt: skip
    return report, generated, correct


def save_sheets(benchmark: SceneBenchmark, generated: np.ndarray, correct: np.ndarray, out: Path) -> None:
    """Write sheet.png (64 evenly spaced prompts) and failures.png (up to 16 incorrect images, if there are any)."""
    labels = [f"{'UNSEEN: ' if q.unseen else ''}{q.prompt}" for q in benchmark.asked]
    rows = np.linspace(0, len(labels) - 1, min(64, len(labels))).astype(int)
    marked = [("" if correct[i, 0] else "[wrong] ") + labels[i] for i in rows]
    contact_sheet([generated[i, 0] for i in rows], marked, columns=8).save(out / "sheet.png")
    wrong = np.flatnonzero(~correct[:, 0])
    (out / "failures.png").unlink(missing_ok=True)
    if len(wrong):
        wrong = wrong[np.unique(np.linspace(0, len(wrong) - 1, 16).astype(int))]
        images = [generated[i, 0] for i in wrong]
        contact_sheet(images, [labels[i] for i in wrong], columns=8).save(out / "failures.png")


def print_report(report: dict[str, Any]) -> None:
    """Print the scores as a table; the last line is the report as JSON."""
    print(f"{'category':20s} {'score':>7s} {'seen':>7s} {'unseen':>7s} {'ceiling':>8s}")
    for name in SCORED_CATEGORIES:
        values = [report[name], report[f"{name}_seen"], report[f"{name}_unseen"], report[f"{name}_ceiling"]]
        print(f"{name:20s} " + " ".join(f"{percent(value):>7s}" for value in values))
    print(f"{'overall':20s} {'':7s} {percent(report['score_seen']):>7s} {percent(report['score_unseen']):>7s}", end=" ")
    print(f"{report['checker_ceiling']:7.1%}  (false renders rejected: {report['checker_reject']:.1%})")
    for name in ("style", "r_precision"):
        cells = [report[f"{name}{cell}"] for cell in ("", "_seen", "_unseen", "_ceiling")]
        print(f"{name:20s} " + " ".join(f"{percent(value):>7s}" for value in cells) + "  (of things in a style)")
    print(json.dumps(report))


def print_comparison(reports: dict[str, dict[str, Any]]) -> None:
    """Print one line per quality preset; the last line is all reports, by preset, as JSON."""
    print(f"{'settings':12s} {'seen':>7s} {'unseen':>7s} {'R-prec.':>8s} {'distance':>9s} {'s/image':>10s}")
    for name, r in reports.items():
        shares = f"{percent(r['score_seen']):>7s} {percent(r['score_unseen']):>7s} {r['r_precision']:8.1%}"
        print(f"{name:12s} {shares} {r['feature_distance']:9.2f} {r['seconds_per_image']:10.4f}")
    print(json.dumps(reports))


def run_scenes(
    engine: ServingEngine, data: Path, detector: Path, prompts: int, choices: dict[str, Sampling], images: int,
    seed: int, out: Path,
) -> None:  # fmt: skip
    """Score the checkpoint with each of `choices` (quality preset -> settings) and write sheets and report.json.

    Args:
        data, detector: folders of the sprites and of the trained detector.
        prompts: prompts in each of the six categories.
        images: images per prompt.
        out: folder to write to; with several choices, one subfolder for each.

    Raises:
        ConfigError: the checkpoint's images are of another size. DataError, DetectorError: see SceneBenchmark.load.
    """
    check_size(engine, SIZE, "the suite scenes")
    about, reports = engine.checkpoint.about, {}
    held_out = holds_styles_out(about.get("training", {}))
    benchmark = SceneBenchmark.load(data, detector, prompts, about.get("vocabulary", ()), held_out)
    detector_scores = benchmark.detector_scores()
    for name, settings in choices.items():
        folder = out / name if len(choices) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        reports[name], generated, correct = evaluate_scenes(engine, benchmark, settings, images, detector_scores, seed)
        save_sheets(benchmark, generated, correct, folder)
        (folder / "report.json").write_text(json.dumps(reports[name], indent=1) + "\n")
        print_report(reports[name])
    if len(choices) > 1:
        print_comparison(reports)
