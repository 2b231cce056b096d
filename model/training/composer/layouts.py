"""Every layout of a scene and its probability: what `compose.arrange` samples by trial, as tables to draw from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.data.scenes.compose import COMPOSED_SLANT, SIZE, relation_holds
from model.data.sources import DataError

MOST_LAYOUTS = 2_000_000  # of one kind: their tables take some 100 bytes each


@dataclass(frozen=True)
class Layouts:
    """The layouts of n things of one size.

    Attributes:
        corners: (L, n, 2) upper left corners (x, y), pixels.
        chances: (L,) probabilities; their sum is 1.
    """

    corners: np.ndarray
    chances: np.ndarray


def all_layouts(things: int, side: int, snap: int, relation: str) -> Layouts:
    """The layouts that `arrange` may return for `things` squares of `side` pixels, and how likely it is to.

    One thing after the other takes a random free place; a layout that gets stuck, or lacks the relation, is dropped as
    a whole, which leaves the others' probabilities in proportion.

    Args:
        snap: corners are multiples of this, pixels.
        relation: of the first thing to the second, or "".

    Raises:
        DataError: there is none, or there are too many to keep.
    """
    what = f"{things} things of {side} pixels"
    grid = np.arange(0, SIZE - side + 1, snap)
    places = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)  # (P, 2)
    apart = (np.abs(places[:, None] - places[None]) >= side).any(-1)  # (P, P): squares that do not overlap
    chosen, chances = np.zeros((1, 0), np.int64), np.ones(1)
    for _ in range(things):
        free = apart[chosen].all(1)  # (L, P)
        if free.sum() > MOST_LAYOUTS:
            raise DataError(f"{what} have {free.sum():,} layouts and more with snap {snap}; choose a larger snap")
        layout, place = np.nonzero(free)
        chances = chances[layout] / free.sum(1)[layout]
        chosen = np.concatenate([chosen[layout], place[:, None]], 1)
    if relation:
        centres = [(x + side / 2, y + side / 2) for x, y in places.tolist()]
        holds = np.array(
            [[relation_holds(relation, a, b, by=side * 0.75, slant=COMPOSED_SLANT) for b in centres] for a in centres]
        )
        kept = holds[chosen[:, 0], chosen[:, 1]]
        chosen, chances = chosen[kept], chances[kept]
    if not len(chances):
        raise DataError(f"{what} found no room with snap {snap}; choose a smaller snap")
    return Layouts(places[chosen], chances / chances.sum())
