"""The suite run on a checkpoint: `python -m model.evaluation --suite scenes`. Prints a table, then one JSON object."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.data.contact_sheet import contact_sheet
from model.data.scenes.facts import SUITE, Facts, Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import STYLES
from model.evaluation.detector import Checker, load_checker
from model.evaluation.drawing import draw
from model.evaluation.features import CANDIDATES, FEATURES_NAME, Features
from model.evaluation.scene_questions import Question, by_category, falsified, questions, renders, share, shows
from model.inference.requests import Sampling
from model.inference.serving import ServingEngine
from model.networks.tokenizer import to_pixels

RENDER_SEED = 20241023
JPEG_QUALITY = 40  # a disturbance that the checker was not trained with


@dataclass
class Suite:
    """What the judge needs, loaded once."""

    sprites: Sprites
    checker: Checker
    checker_sha256: str
    grammar: Grammar
    asked: list[Question]

    @classmethod
    def open(cls, data: Path, checker_folder: Path, per_category: int) -> Suite:
        sprites, checker = Sprites.load(data), load_checker(checker_folder)
        digest = hashlib.sha256((checker_folder / "checker.safetensors").read_bytes()).hexdigest()
        grammar = Grammar(sprites, checker.things, STYLES)
        return cls(sprites, checker, digest, grammar, questions(grammar, per_category))

    def judge(self, facts: list[Facts], pictures: np.ndarray) -> np.ndarray:
        """Whether picture p shows facts p; (P,) bool."""
        found = self.checker.find(to_pixels(torch.from_numpy(pictures)))
        return np.array([shows(f, things, p) for f, things, p in zip(facts, found, pictures, strict=True)])

    def trust(self) -> dict[str, float]:
        """How the judge does on pictures whose truth is known."""
        facts = [q.facts for q in self.asked]
        rng = np.random.default_rng(RENDER_SEED)
        lies = [falsified(f, self.grammar, rng) for f in facts]
        true, false = renders(facts, self.sprites, RENDER_SEED), renders(lies, self.sprites, RENDER_SEED + 1)
        passed = self.judge(facts, true)
        report = {
            "checker_ceiling": float(passed.mean()),
            "checker_ceiling_jpeg": float(self.judge(facts, np.stack([_jpeg(p) for p in true])).mean()),
            "checker_reject": float(1 - self.judge(facts, false).mean()),
        }
        for category in SUITE:
            mine = np.array([f.category == category for f in facts])
            report[f"{category}_ceiling"] = float(passed[mine].mean())
        return report


def _jpeg(picture: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(out).convert("RGB"))


def r_precision(query: Tensor, real: Tensor, seed: int = 0) -> float:
    """Share of queries nearest to their own render among CANDIDATES; (P, F) unit vectors each, row by row."""
    hits = 0
    for row in range(len(query)):
        rng = np.random.default_rng((seed, row))
        others = [i for i in rng.choice(len(real), min(CANDIDATES, len(real)), replace=False).tolist() if i != row]
        rows = torch.tensor([row, *others[: CANDIDATES - 1]])
        hits += int((real[rows] @ query[row]).argmax()) == 0
    return hits / len(query)


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of unit vectors, kernel (x·y + 1)³ after KID (1801.01401), ×1000.

    a, b: (P, F), row by row of the same prompt.
    """

    def between(x: Tensor, y: Tensor) -> float:
        k = (x @ y.T + 1) ** 3
        return float((k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1)))

    # Row i of both sets has the same prompt, so the diagonal is no pair of independent pictures there either.
    return 1000 * (between(a, a) + between(b, b) - 2 * between(a, b))


def evaluate_scenes(
    engine: ServingEngine, suite: Suite, settings: Sampling, images: int, trust: dict[str, float], seed: int = 0
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """All scores; the drawings (questions, images, H, W, 3) and whether each is right (questions, images)."""
    asked = suite.asked
    prompts = [q.prompt for q in asked for _ in range(images)]
    start = time.perf_counter()
    drawn = draw(engine, prompts, settings, seed)
    seconds = (time.perf_counter() - start) / len(prompts)
    right = suite.judge([q.facts for q in asked for _ in range(images)], drawn).reshape(len(asked), images)
    drawn = drawn.reshape(len(asked), images, *drawn.shape[1:])

    extractor, facts = Features(), [q.facts for q in asked]
    real = [extractor(to_pixels(torch.from_numpy(renders(facts, suite.sprites, RENDER_SEED + n)))) for n in (2, 3)]
    made = extractor(to_pixels(torch.from_numpy(np.ascontiguousarray(drawn[:, 0]))))
    report: dict[str, Any] = {**by_category(asked, right.mean(1)), **trust}
    report["r_precision"], report["r_precision_ceiling"] = r_precision(made, real[0]), r_precision(real[1], real[0])
    report["feature_distance"] = feature_distance(made, real[0])
    report["feature_distance_floor"] = feature_distance(real[1], real[0])
    report = {key: value if value is None else round(value, 4) for key, value in report.items()}
    report |= {
        "features": FEATURES_NAME, "candidates": min(CANDIDATES, len(asked)), "seconds_per_image": round(seconds, 4),
        "images": len(prompts), "prompts": len(asked), "date": datetime.date.today().isoformat(),
        "settings": asdict(settings),
        "checkpoint_sha256": engine.checkpoint.sha256, "checker_sha256": suite.checker_sha256,
    }  # fmt: skip
    return report, drawn, right


def save_sheets(suite: Suite, drawn: np.ndarray, right: np.ndarray, out: Path) -> None:
    """sheet.png: 64 fixed prompts, right or wrong; failures.png: wrong ones."""
    labels = [f"{'UNSEEN: ' if q.unseen else ''}{q.prompt}" for q in suite.asked]
    rows = np.linspace(0, len(suite.asked) - 1, min(64, len(suite.asked))).astype(int)
    marked = [("" if right[i, 0] else "[wrong] ") + labels[i] for i in rows]
    contact_sheet([drawn[i, 0] for i in rows], marked, columns=8).save(out / "sheet.png")
    wrong = np.flatnonzero(~right[:, 0])
    (out / "failures.png").unlink(missing_ok=True)
    if len(wrong):
        wrong = wrong[np.unique(np.linspace(0, len(wrong) - 1, 16).astype(int))]
        contact_sheet([drawn[i, 0] for i in wrong], [labels[i] for i in wrong], columns=8).save(out / "failures.png")


def print_report(report: dict[str, Any]) -> None:
    print(f"{'category':20s} {'score':>7s} {'seen':>7s} {'unseen':>7s} {'ceiling':>8s}")
    for name in SUITE:
        values = [report[name], report[f"{name}_seen"], report[f"{name}_unseen"], report[f"{name}_ceiling"]]
        print(f"{name:20s} " + " ".join(f"{share(value):>7s}" for value in values))
    print(f"{'overall':20s} {'':7s} {share(report['score_seen']):>7s} {share(report['score_unseen']):>7s}", end=" ")
    print(f"{report['checker_ceiling']:7.1%}  (false renders rejected: {report['checker_reject']:.1%})")
    print(json.dumps(report))


def print_comparison(reports: dict[str, dict[str, Any]]) -> None:
    """One line for each way to draw; the last line is all reports by name."""
    print(f"{'settings':12s} {'seen':>7s} {'unseen':>7s} {'R-prec.':>8s} {'distance':>9s} {'s/picture':>10s}")
    for name, r in reports.items():
        shares = f"{share(r['score_seen']):>7s} {share(r['score_unseen']):>7s} {r['r_precision']:8.1%}"
        print(f"{name:12s} {shares} {r['feature_distance']:9.2f} {r['seconds_per_image']:10.4f}")
    print(json.dumps(reports))


def run_suite(
    engine: ServingEngine, data: Path, checker: Path, prompts: int, choices: dict[str, Sampling], images: int,
    seed: int, out: Path,
) -> None:  # fmt: skip
    """Ask `prompts` prompts of each category, `images` pictures each, in each of the ways to draw.

    Sheets and report.json go to `out`, or to a folder in it for each of several ways.
    """
    suite, reports = Suite.open(data, checker, prompts), {}
    trust = suite.trust()
    for name, settings in choices.items():
        folder = out / name if len(choices) > 1 else out
        folder.mkdir(parents=True, exist_ok=True)
        reports[name], drawn, right = evaluate_scenes(engine, suite, settings, images, trust, seed)
        save_sheets(suite, drawn, right, folder)
        (folder / "report.json").write_text(json.dumps(reports[name], indent=1) + "\n")
        print_report(reports[name])
    if len(choices) > 1:
        print_comparison(reports)
