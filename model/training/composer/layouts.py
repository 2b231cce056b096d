"""Every layout of a scene and its probability: what `compose.arrange` samples by trial, as tables to draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from model.data.scenes.compose import arrangements, composed_relation_holds, multiples
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

    Args:
        snap: corners are multiples of this, pixels.
        relation: of the first thing to the second, or "".

    Raises:
        DataError: there is none, or there are too many to keep.
    """
    what = f"{things} things of {side} pixels"
    found, chances = [np.zeros((0, things, 2), np.int64)], [np.zeros(0)]
    for spans in arrangements(things, side):
        axes = [multiples(span, snap) for place in spans for span in place]  # x, y of each thing
        count = math.prod(map(len, axes)) * math.factorial(things)
        if count > MOST_LAYOUTS:
            raise DataError(
                f"{what} have {count:,} layouts with snap {snap}, more than {MOST_LAYOUTS:,}; choose a larger snap"
            )
        corners = np.array(list(product(*axes)), np.int64).reshape(-1, things, 2)
        for order in permutations(range(things)):
            found.append(corners[:, order])
            chances.append(np.full(len(corners), 1 / max(count, 1)))
    chosen, chance = np.concatenate(found), np.concatenate(chances)
    if relation:
        centres = (chosen + side / 2).tolist()
        kept = np.array([composed_relation_holds(relation, each[0], each[1], side) for each in centres], bool)
        chosen, chance = chosen[kept], chance[kept]
    if not len(chance):
        raise DataError(f"{what} found no room with snap {snap}; choose a smaller snap")
    return Layouts(chosen, chance / chance.sum())
