"""Facts -> where everything is -> pixels. Fast enough to draw every training picture anew.

Everything follows from the facts and one random generator, so (seed, index) names a picture for ever.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from model.data.scenes.facts import PORTRAIT, Facts
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import BACKGROUNDS
from model.data.sources import DataError

SIZE = 128  # pixels of a picture
# Side of a thing's square by how many there are; the square has a free border of SIDE / 16.
SIDES = {1: 96, 2: 64, 3: 48, 4: 48}
DRAWN_SLANT = 0.6  # "above" is drawn steeper than it is judged, so that no true picture lies on the edge of false
NAMED_SIDES = {"small": 48, "big": 128}
PORTRAIT_SIDE = 128


@dataclass(frozen=True, slots=True)
class Placed:
    """One thing in the picture: the upper left corner and the side of its square, pixels."""

    thing: str
    colour: str
    x: int
    y: int
    side: int

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.side / 2, self.y + self.side / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """Facts and where everything is: the machine-readable twin of a picture."""

    facts: Facts
    objects: tuple[Placed, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def relation_holds(
    relation: str, first: tuple[float, float], second: tuple[float, float], by: float, slant: float = 1.0
) -> bool:
    """Whether the first centre lies so of the second: by more than `by`, and less than `slant` times as far across."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    along = {"left": dx, "right": -dx, "above": dy, "below": -dy}[relation]
    across = abs(dy) if relation in ("left", "right") else abs(dx)
    return along > by and across < slant * along


def arrange(facts: Facts, rng: np.random.Generator, snap: int) -> Scene:
    """Put the facts' things in free squares whose corners are multiples of `snap` pixels."""
    things = facts.objects
    side = PORTRAIT_SIDE if facts.category == PORTRAIT else NAMED_SIDES.get(facts.size) or SIDES[len(things)]
    grid = np.arange(0, SIZE - side + 1, snap)
    for _ in range(1000):
        corners: list[tuple[int, int]] = []
        free = np.ones((len(grid), len(grid)), bool)  # by y, x: corners whose square touches no other
        while len(corners) < len(things) and free.any():
            places = np.argwhere(free)
            y, x = grid[places[rng.integers(len(places))]].tolist()
            corners.append((x, y))
            free &= (np.abs(grid - y) >= side)[:, None] | (np.abs(grid - x) >= side)[None]
        placed = tuple(Placed(g.thing, g.colour, x, y, side) for g, (x, y) in zip(things, corners, strict=False))
        if len(placed) < len(things):
            continue
        if facts.relation:
            first, second = placed[0].centre, placed[1].centre
            if not relation_holds(facts.relation, first, second, by=side * 0.75, slant=DRAWN_SLANT):
                continue
        return Scene(facts, placed)
    raise DataError(f"{len(things)} things of {side} pixels found no room with snap {snap}; choose a smaller snap")


def render(scene: Scene, sprites: Sprites) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8."""
    page = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.facts.background])
    for thing in scene.objects:
        border = thing.side // 16
        sprite = sprites.drawn(thing.thing, scene.facts.style, thing.colour, thing.side - 2 * border)
        page.paste(sprite, (thing.x + border, thing.y + border), sprite)
    return np.asarray(page)
