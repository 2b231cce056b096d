"""An extra lesson for training on scenes: say which thing, in which colour, covers each token that is still unknown.

The diffusion loss hardly rewards knowing which of two things stands on the left: before anything is drawn either place
is likely, and afterwards the picture itself tells. So "a cat left of a dog" was learned to its axis and no further, in
three hours (docs/log.md). A composed scene comes with its truth, and cross-entropy against it is a direct signal. The
layer that answers belongs to training alone: checkpoints do not have it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.scenes.compose import SIZE, Scene
from model.data.scenes.things import COLOURS, THINGS

COLOUR_NAMES = ("", *COLOURS)  # "": as drawn by the style, and the background
# Things by their place in the table, so that a class means the same in every recipe. Portraits share the last one.
THING_CLASSES = {name: index for index, name in enumerate(("", *THINGS))}
PORTRAIT_CLASS = len(THING_CLASSES)


def cell_classes(scenes: Sequence[Scene], grid: int) -> np.ndarray:
    """(B, N, 2) int64: thing and colour of the square that covers each token's middle; 0 where there is none."""
    out = np.zeros((len(scenes), grid, grid, 2), np.int64)
    middle = (np.arange(grid) + 0.5) * (SIZE / grid)  # pixels
    for row, scene in enumerate(scenes):
        for placed in scene.objects:
            x, y = (np.flatnonzero((middle > start) & (middle < start + placed.side)) for start in (placed.x, placed.y))
            out[row, y[:, None], x] = (
                THING_CLASSES.get(placed.thing, PORTRAIT_CLASS),
                COLOUR_NAMES.index(placed.colour),
            )
    return out.reshape(len(scenes), grid * grid, 2)


class LayoutHead(nn.Module):
    """z of a token -> logits over things and over colours."""

    def __init__(self, width: int):
        super().__init__()
        self.thing = nn.Linear(width, PORTRAIT_CLASS + 1)
        self.colour = nn.Linear(width, len(COLOUR_NAMES))

    def loss(self, z: Tensor, cells: Tensor) -> Tensor:
        """Sum of both cross-entropies, nats a token. z: (M, D). cells: (M, 2) of `cell_classes`."""
        thing = F.cross_entropy(self.thing(z).float(), cells[:, 0])
        colour = F.cross_entropy(self.colour(z).float(), cells[:, 1])
        return thing + colour
