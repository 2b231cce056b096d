"""R-precision of emoji: 1 for perfect images, chance for unrelated ones; memorisation is detected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.data.dataset import Dataset, Item
from model.evaluation.evaluate_emoji import hits, nearest_is_prompted, spread
from model.evaluation.features import CANDIDATES

CONCEPTS = 150


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """150 concepts in two styles, each an image of noise."""
    rng = np.random.default_rng(0)
    items = [Item(f"thing {c}", s, (f"thing {c}",), "train") for c in range(CONCEPTS) for s in ("flat", "3d")]
    return Dataset(rng.integers(0, 256, (len(items), 16, 16, 3), dtype=np.uint8), items, {})


def test_perfect_images_score_one_and_unrelated_ones_score_chance(dataset: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    real = F.normalize(torch.randn(len(dataset.items), 64, generator=generator), dim=-1)
    rows = np.arange(len(dataset.items))
    pool = dataset.concepts("train")
    assert hits(real, rows, dataset, real, pool).all()
    unrelated = F.normalize(torch.randn(len(dataset.items), 64, generator=generator), dim=-1)
    assert hits(unrelated, rows, dataset, real, pool).mean() < 5 / CANDIDATES


def test_only_the_prompted_style_competes(dataset: Dataset) -> None:
    """An image equal to the concept's in the *other* style is not a hit by that alone."""
    real = F.normalize(torch.randn(len(dataset.items), 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    rows = np.arange(0, len(dataset.items), 2)  # flat
    assert hits(real[rows + 1], rows, dataset, real, dataset.concepts("train")).mean() < 5 / CANDIDATES


def test_memorised_images_are_detected(dataset: Dataset) -> None:
    rows = spread(dataset.indices("train"), 40)
    assert len(rows) == 40 and rows[0] == 0 and rows[-1] == len(dataset.items) - 1
    assert nearest_is_prompted(dataset.images[rows], rows, dataset) == 1.0
    assert nearest_is_prompted(dataset.images[rows[::-1].copy()], rows, dataset) < 0.1
