"""R-precision of single emoji: does a generated image show the prompted concept?

R-precision@1: a generated image is correct when, among the real images of 100 concepts in the prompted style, the
nearest in feature space (features.py) shows the prompted concept. Chance is 1 %. The report also gives:
  - the same score of the tokenizer's reconstructions of the real images: the ceiling that tokenizer and features allow;
  - held-out pairs (concept trained in the other styles only) and concepts never trained, separately;
  - the share of generated images whose nearest training image, compared at 16×16 pixels, is the prompted one: how much
    of the score is memorisation.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.contact_sheet import contact_sheet
from model.data.dataset import Dataset
from model.evaluation.features import CANDIDATES, FEATURES_NAME, Features
from model.evaluation.generation import generate_images
from model.inference.requests import Sampling
from model.inference.serving import ServingEngine
from model.networks.tokenizer import reconstruct, to_pixels, to_uint8


def hits(features: Tensor, rows: np.ndarray, dataset: Dataset, real: Tensor, pool: list[str]) -> np.ndarray:
    """Return, for each query, whether the nearest of CANDIDATES real images is that of its own data set row; (Q,) bool.

    Args:
        features: (Q, F) unit vectors, of images generated (or reconstructed) for the data set rows `rows`.
        real: (N, F) unit vectors of the whole data set.
        pool: concepts that the candidates are drawn from.
    """
    where = {(item.concept, item.style): i for i, item in enumerate(dataset.items)}
    hit = np.zeros(len(rows), bool)
    for query, row in enumerate(rows):
        item = dataset.items[row]
        rng = np.random.default_rng(int(row))
        others = [c for c in pool if c != item.concept]
        names = [item.concept, *rng.choice(others, CANDIDATES - 1, replace=False).tolist()]
        candidates = torch.tensor([where[name, item.style] for name in names])
        hit[query] = int((real[candidates] @ features[query]).argmax()) == 0
    return hit


def nearest_is_prompted(generated: np.ndarray, rows: np.ndarray, dataset: Dataset) -> float:
    """Share of generated images whose nearest training image (16×16 pixels, L2) is that of their own row."""
    train = dataset.indices("train")
    small = F.avg_pool2d(to_pixels(torch.from_numpy(dataset.images[train])), dataset.images.shape[1] // 16).flatten(1)
    query = F.avg_pool2d(to_pixels(torch.from_numpy(generated)), dataset.images.shape[1] // 16).flatten(1)
    return float((train[torch.cdist(query, small).argmin(1).numpy()] == rows).mean())


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Choose `count` of the rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]


Generated = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # (data set rows, images, correct) of each split


def evaluate_emoji(
    engine: ServingEngine, dataset: Dataset, images: int, settings: Sampling, seed: int = 0
) -> tuple[dict[str, object], Generated]:
    """Generate `images` images of trained pairs and those of the other splits, and score them.

    Returns:
        The report, and the images of the splits train, heldout and unseen.
    """
    extractor = Features()
    real = extractor(to_pixels(torch.from_numpy(dataset.images)))
    vocabulary, unseen = dataset.concepts("train"), dataset.concepts("unseen")
    report: dict[str, object] = {
        "features": FEATURES_NAME,
        "candidates": CANDIDATES,
        "chance": 1 / CANDIDATES,
    }
    kept: Generated = []
    seconds, total = 0.0, 0
    for name, split, count in (
        ("trained", "train", images),
        ("heldout", "heldout", 10**6),
        ("unseen", "unseen", 100),
    ):
        rows = spread(dataset.indices(split), count)
        start = time.perf_counter()
        generated = generate_images(engine, [dataset.items[i].captions[0] for i in rows], settings, seed)
        seconds, total = seconds + time.perf_counter() - start, total + len(rows)
        pool = vocabulary if split != "unseen" else vocabulary + unseen
        correct = hits(extractor(to_pixels(torch.from_numpy(generated))), rows, dataset, real, pool)
        kept.append((rows, generated, correct))
        report[f"r_precision_{name}"] = round(float(correct.mean()), 4)
        report[f"images_{name}"] = len(rows)
        if split == "train":
            for style in dict.fromkeys(item.style for item in dataset.items):
                mine = np.array([dataset.items[i].style == style for i in rows])
                report[f"r_precision_trained_{style}"] = round(float(correct[mine].mean()), 4)
            report["nearest_training_is_prompted"] = round(nearest_is_prompted(generated, rows, dataset), 4)
            originals = to_pixels(torch.from_numpy(dataset.images[rows]))
            copies = reconstruct(engine.checkpoint.tokenizer, originals.to(engine.engine.device))[:, :3].cpu()
            ceiling = hits(extractor(to_pixels(to_uint8(copies))), rows, dataset, real, pool)
            report["r_precision_ceiling"] = round(float(ceiling.mean()), 4)
    report["seconds_per_image"], report["images"] = round(seconds / total, 4), total
    report["settings"] = asdict(settings)
    report["date"] = datetime.date.today().isoformat()
    report["checkpoint_sha256"] = engine.checkpoint.sha256
    return report, kept


def save_sheet(dataset: Dataset, kept: Generated, file: Path) -> None:
    """Write a sheet of trained, held-out and unseen prompts: rows of generated images above their real ones."""
    images: list[np.ndarray] = []
    labels: list[str] = []
    for (rows, generated, _), tag, count in zip(kept, ("", "HELD OUT: ", "UNSEEN: "), (24, 8, 8), strict=True):
        for part in np.array_split(np.linspace(0, len(rows) - 1, count).astype(int), count // 8):
            images += [*generated[part], *dataset.images[rows[part]]]
            labels += [tag + dataset.items[rows[i]].captions[0] for i in part] + ["(real)"] * len(part)
    contact_sheet(images, labels, columns=8, scale=2).save(file)


def save_failures(dataset: Dataset, kept: Generated, file: Path, count: int = 16) -> None:
    """Write a sheet of incorrect images of trained prompts above the real ones they should resemble.

    If there are none, no file remains, not even one from an earlier evaluation.
    """
    rows, generated, correct = kept[0]
    wrong = np.flatnonzero(~correct)[:count]
    images, labels = [], []
    for start in range(0, len(wrong), 8):
        part = wrong[start : start + 8]
        blank = [np.full_like(generated[0], 255)] * (8 - len(part))
        images += [*generated[part], *blank, *dataset.images[rows[part]], *blank]
        labels += [dataset.items[rows[i]].captions[0] for i in part] + [""] * len(blank)
        labels += ["(real)"] * len(part) + [""] * len(blank)
    file.unlink(missing_ok=True)
    if images:
        contact_sheet(images, labels, columns=8, scale=2).save(file)
