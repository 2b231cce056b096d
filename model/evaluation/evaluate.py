"""Does the model draw what the prompt says? `python -m model.evaluation --checkpoint model/checkpoints/emoji-64`

R-precision@1: a drawn picture is right when, among the real pictures of 100 concepts in the prompted style, the nearest
in feature space (model/evaluation/features.py) shows the prompted concept. Chance is 1 %. Printed beside it:
  - the same score for reconstructions of the real pictures: the ceiling that tokenizer and features allow;
  - held-out pairs (concept trained in the other styles only) and concepts never trained, apart;
  - the share of drawings whose nearest training picture, by 16×16 pixels, is the prompted one: how much of the
    score is memory.
The last line of output is one JSON object. A sheet of drawings above the real pictures goes to --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.evaluation.drawing import default_sampling, draw
from model.evaluation.evaluate_scenes import run_suite
from model.evaluation.features import CANDIDATES, FEATURES_NAME, Features
from model.inference.load import find_checkpoint, load_engine
from model.inference.requests import Sampling
from model.inference.serving import ServingEngine
from model.networks.tokenizer import reconstruct, to_pixels, to_uint8


def hits(features: Tensor, rows: np.ndarray, dataset: Dataset, real: Tensor, pool: list[str]) -> np.ndarray:
    """Whether each query is right. features: (Q, F) of pictures for the data set rows; real: (all, F)."""
    where = {(item.concept, item.style): i for i, item in enumerate(dataset.items)}
    right = np.zeros(len(rows), bool)
    for query, row in enumerate(rows):
        item = dataset.items[row]
        rng = np.random.default_rng(int(row))
        others = [c for c in pool if c != item.concept]
        names = [item.concept, *rng.choice(others, CANDIDATES - 1, replace=False).tolist()]
        candidates = torch.tensor([where[name, item.style] for name in names])
        right[query] = int((real[candidates] @ features[query]).argmax()) == 0
    return right


def nearest_is_prompted(drawn: np.ndarray, rows: np.ndarray, dataset: Dataset) -> float:
    """Share of drawings whose nearest training picture (16×16 pixels, L2) is that of their own row."""
    train = dataset.indices("train")
    small = F.avg_pool2d(to_pixels(torch.from_numpy(dataset.images[train])), dataset.images.shape[1] // 16).flatten(1)
    query = F.avg_pool2d(to_pixels(torch.from_numpy(drawn)), dataset.images.shape[1] // 16).flatten(1)
    return float((train[torch.cdist(query, small).argmin(1).numpy()] == rows).mean())


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` rows, evenly over the split."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


Drawings = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # (data set rows, pictures, right?) of each split


def evaluate(
    engine: ServingEngine, dataset: Dataset, images: int, settings: Sampling, seed: int = 0
) -> tuple[dict[str, object], Drawings]:
    """All scores, and what was drawn for them."""
    extractor = Features()
    real = extractor(to_pixels(torch.from_numpy(dataset.images)))
    vocabulary, unseen = dataset.concepts("train"), dataset.concepts("unseen")
    report: dict[str, object] = {
        "features": FEATURES_NAME,
        "candidates": CANDIDATES,
        "chance": 1 / CANDIDATES,
    }
    kept: Drawings = []
    seconds, total = 0.0, 0
    for name, split, count in (
        ("trained", "train", images),
        ("heldout", "heldout", 10**6),
        ("unseen", "unseen", 100),
    ):
        rows = spread(dataset.indices(split), count)
        start = time.perf_counter()
        drawn = draw(engine, [dataset.items[i].captions[0] for i in rows], settings, seed)
        seconds, total = seconds + time.perf_counter() - start, total + len(rows)
        pool = vocabulary if split != "unseen" else vocabulary + unseen
        right = hits(extractor(to_pixels(torch.from_numpy(drawn))), rows, dataset, real, pool)
        kept.append((rows, drawn, right))
        report[f"r_precision_{name}"] = round(float(right.mean()), 4)
        report[f"images_{name}"] = len(rows)
        if split == "train":
            for style in dict.fromkeys(item.style for item in dataset.items):
                mine = np.array([dataset.items[i].style == style for i in rows])
                report[f"r_precision_trained_{style}"] = round(float(right[mine].mean()), 4)
            report["nearest_training_is_prompted"] = round(nearest_is_prompted(drawn, rows, dataset), 4)
            originals = to_pixels(torch.from_numpy(dataset.images[rows]))
            copies = reconstruct(engine.checkpoint.tokenizer, originals.to(engine.engine.device)).cpu()
            ceiling = hits(extractor(to_pixels(to_uint8(copies))), rows, dataset, real, pool)
            report["r_precision_ceiling"] = round(float(ceiling.mean()), 4)
    report["seconds_per_image"], report["images"] = round(seconds / total, 4), total
    report["settings"] = asdict(settings)
    report["date"] = datetime.date.today().isoformat()
    report["checkpoint_sha256"] = engine.checkpoint.sha256
    return report, kept


def save_sheet(dataset: Dataset, kept: Drawings, file: Path) -> None:
    """Trained, held-out and unseen drawings, each row of drawings above its row of real pictures."""
    pictures: list[np.ndarray] = []
    labels: list[str] = []
    for (rows, drawn, _), tag, count in zip(kept, ("", "HELD OUT: ", "UNSEEN: "), (24, 8, 8), strict=True):
        for part in np.array_split(np.linspace(0, len(rows) - 1, count).astype(int), count // 8):
            pictures += [*drawn[part], *dataset.images[rows[part]]]
            labels += [tag + dataset.items[rows[i]].captions[0] for i in part] + ["(real)"] * len(part)
    contact_sheet(pictures, labels, columns=8, scale=2).save(file)


def save_failures(dataset: Dataset, kept: Drawings, file: Path, count: int = 16) -> None:
    """Trained prompts whose drawing was nearer to another concept, above what it should have been.

    Where there are none, no file is left, not even an earlier evaluation's.
    """
    rows, drawn, right = kept[0]
    wrong = np.flatnonzero(~right)[:count]
    pictures, labels = [], []
    for start in range(0, len(wrong), 8):
        part = wrong[start : start + 8]
        blank = [np.full_like(drawn[0], 255)] * (8 - len(part))
        pictures += [*drawn[part], *blank, *dataset.images[rows[part]], *blank]
        labels += [dataset.items[rows[i]].captions[0] for i in part] + [""] * len(blank)
        labels += ["(real)"] * len(part) + [""] * len(blank)
    file.unlink(missing_ok=True)
    if pictures:
        contact_sheet(pictures, labels, columns=8, scale=2).save(file)


# What each suite asks unless told otherwise: checkpoint, data, pictures
SUITES = {"emoji": ("emoji-64", Path("data/emoji-64"), 400), "scenes": ("scenes-128", Path("data/scenes"), 4)}


def _presets(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - {"low", "medium", "high"}:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is not low, medium or high")
    return names


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("emoji", "scenes"), default="emoji", help="which questions to ask")
    parser.add_argument("--checker", type=Path, default=Path("runs/checker"), help="of scenes: the trained judge")
    parser.add_argument("--prompts", type=int, default=100, help="of scenes: prompts in each of the six categories")
    parser.add_argument("--checkpoint", help="folder, or name of a shipped checkpoint; default that of the suite")
    parser.add_argument("--data", type=Path, help="what `make data` packed; default that of the suite")
    parser.add_argument("--images", type=int, help="trained pairs to draw (400); of scenes: of each prompt (4)")
    parser.add_argument(
        "--quality", type=_presets, metavar="PRESET[,PRESET]", default=("",),
        help="of low, medium, high; default the checkpoint's; of scenes several, to be compared",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=64, help="pictures decoded together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sampling", type=Path, help="JSON with presets and defaults, in place of the checkpoint's")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate"), help="folder for the sheet and the JSON")
    dials = {
        "num_inference_steps": int, "diffusion_steps": int, "diffusion_steps_final": int, "order": str,
        "guidance_scale": float, "guidance_schedule": str, "temperature": float,
    }  # fmt: skip
    for name, kind in dials.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="override the preset's")
    args = parser.parse_args(argv)

    checkpoint, data, images = SUITES[args.suite]
    args.checkpoint, args.data, args.images = args.checkpoint or checkpoint, args.data or data, args.images or images
    engine = load_engine(str(find_checkpoint(args.checkpoint)), args.rows, "auto", 0)
    if args.sampling:
        engine.checkpoint.about["sampling"] = json.loads(args.sampling.read_text())
    given = {name: value for name in dials if (value := vars(args)[name]) is not None}
    choices = {name: replace(default_sampling(engine, name or None), **given) for name in args.quality}
    if args.suite == "scenes":
        return run_suite(engine, args.data, args.checker, args.prompts, choices, args.images, args.seed, args.out)
    if len(choices) > 1:
        parser.error("--quality: only --suite scenes compares several presets")
    [settings] = choices.values()
    dataset = Dataset.load(args.data)
    report, kept = evaluate(engine, dataset, args.images, settings, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    save_sheet(dataset, kept, args.out / "sheet.png")
    save_failures(dataset, kept, args.out / "failures.png")
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, value in report.items():
        print(f"{name:32s} {value}")
    print(f"{'look at':32s} {args.out / 'sheet.png'}")
    print(json.dumps(report))
