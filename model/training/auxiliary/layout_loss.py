"""Auxiliary loss for scenes: predict which thing, in which colour, covers each masked token.

The diffusion loss hardly rewards knowing which of two things is on the left: before the first token is generated both
sides are likely, and afterwards known tokens show it. In three hours of training, "a cat left of a dog" was therefore
learned up to its axis only (docs/log.md). A composed scene has a known layout, and cross-entropy against it is a direct
signal. The layer that predicts it exists in training only; checkpoints do not contain it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.atlas.store import NUMBER
from model.data.scenes.compose import SIZE, Scene
from model.data.scenes.things import COLOURS, THINGS

COLOUR_NAMES = ("", *COLOURS)  # "": the style's own colours, the background, and the black of one-colour things
# Numbered over the whole table, so that a class means the same in every recipe. Portraits, and things that only the
# breadth of an atlas has, share the last class.
THING_CLASSES = {name: index for index, name in enumerate(("", *THINGS))}
PORTRAIT_CLASS = len(THING_CLASSES)


def classes_of(thing: str, colour: str) -> tuple[int, int]:
    """The classes of a thing and of its colour."""
    return (
        THING_CLASSES.get(thing.partition(NUMBER)[0], PORTRAIT_CLASS),
        COLOUR_NAMES.index(colour) if colour in COLOUR_NAMES else 0,
    )


def tokens_within(start: np.ndarray | int, side: int, grid: int) -> np.ndarray:
    """Along one axis, the tokens whose centres lie within `side` pixels from `start` (…); (…, grid) bool."""
    middle = (np.arange(grid) + 0.5) * (SIZE / grid)  # pixels
    low = np.asarray(start)[..., None]
    within: np.ndarray = (middle > low) & (middle < low + side)
    return within


def cell_classes(scenes: Sequence[Scene], grid: int) -> np.ndarray:
    """Classes of the thing and of the colour that cover each token's centre, 0 for background; (B, N, 2) int64.

    grid: tokens along each side of the image, N = grid².
    """
    out = np.zeros((len(scenes), grid, grid, 2), np.int64)
    for row, scene in enumerate(scenes):
        for placed in scene.objects:
            x, y = (np.flatnonzero(tokens_within(start, placed.side, grid)) for start in (placed.x, placed.y))
            out[row, y[:, None], x] = classes_of(placed.thing, placed.colour)
    return out.reshape(len(scenes), grid * grid, 2)


class LayoutHead(nn.Module):
    """Two linear layers: a token's condition z -> logits over things and over colours."""

    def __init__(self, width: int):
        super().__init__()
        self.thing = nn.Linear(width, PORTRAIT_CLASS + 1)
        self.colour = nn.Linear(width, len(COLOUR_NAMES))

    def loss(self, z: Tensor, cells: Tensor) -> Tensor:
        """Sum of both cross-entropies, nats per token, for M tokens.

        Args:
            z: (M, D) conditions.
            cells: (M, 2) classes from `cell_classes`.
        """
        thing = F.cross_entropy(self.thing(z).float(), cells[:, 0])
        colour = F.cross_entropy(self.colour(z).float(), cells[:, 1])
        return thing + colour
