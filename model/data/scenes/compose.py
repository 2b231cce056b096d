"""Composition of a scene: facts -> layout (`arrange`) -> pixels (`render`), fast enough to run at every training step.

A scene is a function of its facts and one random generator, so (seed, index) identifies an image permanently.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from model.data.scenes.facts import PORTRAIT, SINGLE, Facts
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import BACKGROUNDS, TRANSPARENT
from model.data.sources import DataError

SIZE = 128  # side of an image, pixels
Span = tuple[int, int]  # first and last, pixels
Arrangement = tuple[tuple[Span, Span], ...]  # for each thing where the corner of its square may be: x, y
# Side of a thing's square, in pixels, by the number of things; 1/16 of the square is a free border.
SIDES = {1: 96, 2: 64, 3: 64, 4: 48}
_LOW, _HIGH, _MIDDLE = (0, 0), (64, 64), (16, 48)
_NEAR, _FAR = (0, 16), (64, 80)
# Two beside or above each other, three in a pyramid, four with a quarter each: the number alone tells of almost every
# place whether a thing is there. Anywhere, a small model must count what it has drawn, and drew four of three in one of
# five images (docs/log.md).
ARRANGEMENTS: dict[int, tuple[Arrangement, ...]] = {
    2: (((_LOW, _MIDDLE), (_HIGH, _MIDDLE)), ((_MIDDLE, _LOW), (_MIDDLE, _HIGH))),
    3: (((_MIDDLE, _LOW), (_LOW, _HIGH), (_HIGH, _HIGH)),),
    4: (((_NEAR, _NEAR), (_FAR, _NEAR), (_NEAR, _FAR), (_FAR, _FAR)),),
}
ATTEMPTS = 10_000  # of placing the things of a scene
COMPOSED_SLANT = 0.6  # stricter than the 1.0 of scoring, so that no composed relation is a borderline case
NAMED_SIDES = {"small": 48, "big": 128}
PORTRAIT_SIDE = 128


@dataclass(frozen=True, slots=True)
class Placed:
    """One thing in a scene: the upper left corner (x, y) and the side of its square, in pixels."""

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
    """Facts and the position of every thing: the ground truth of an image."""

    facts: Facts
    objects: tuple[Placed, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def relation_holds(
    relation: str, first: tuple[float, float], second: tuple[float, float], by: float, slant: float = 1.0
) -> bool:
    """Return True if the first centre is left of, right of, above or below the second, as `relation` says.

    Args:
        first, second: centres (x, y), pixels; y grows downwards.
        by: smallest distance along the relation's axis, pixels.
        slant: largest distance across that axis, as a share of the distance along it.
    """
    dx, dy = second[0] - first[0], second[1] - first[1]
    along = {"left": dx, "right": -dx, "above": dy, "below": -dy}[relation]
    across = abs(dy) if relation in ("left", "right") else abs(dx)
    return along > by and across < slant * along


def side_of(facts: Facts) -> int:
    """Side of the square of each of a scene's things, pixels."""
    if facts.category in (PORTRAIT, SINGLE):
        return PORTRAIT_SIDE
    return NAMED_SIDES.get(facts.size) or SIDES[len(facts.objects)]


def arrange(facts: Facts, rng: np.random.Generator, snap: int) -> Scene:
    """Place the facts' things by an arrangement of their number, at corners that are multiples of `snap` pixels.

    Raises:
        DataError: no such layout was found in ATTEMPTS attempts.
    """
    things, side = facts.objects, side_of(facts)
    choices = [
        [(multiples(x, snap), multiples(y, snap)) for x, y in spans] for spans in arrangements(len(things), side)
    ]
    for _ in range(ATTEMPTS):
        grids = choices[rng.integers(len(choices))]
        if all(xs and ys for xs, ys in grids):
            corners = [(xs[rng.integers(len(xs))], ys[rng.integers(len(ys))]) for xs, ys in grids]
            order = rng.permutation(len(things)).tolist()
            places = [corners[at] for at in order]
            placed = tuple(Placed(g.thing, g.colour, x, y, side) for g, (x, y) in zip(things, places, strict=True))
            if not facts.relation or composed_relation_holds(facts.relation, placed[0].centre, placed[1].centre, side):
                return Scene(facts, placed)
    raise DataError(f"{len(things)} things of {side} pixels found no room with snap {snap}; choose a smaller snap")


def arrangements(things: int, side: int) -> tuple[Arrangement, ...]:
    """The arrangements of a number of things in squares of `side` pixels; one alone may be anywhere."""
    return ARRANGEMENTS[things] if things > 1 else ((((0, SIZE - side), (0, SIZE - side)),),)


def multiples(span: Span, snap: int) -> list[int]:
    """The multiples of `snap` from the first to the last of a span."""
    return list(range(-(-span[0] // snap) * snap, span[1] + 1, snap))


def composed_relation_holds(relation: str, first: tuple[float, float], second: tuple[float, float], side: int) -> bool:
    """`relation_holds` for things that are composed: far enough that no one disputes it."""
    return relation_holds(relation, first, second, by=side * 0.75, slant=COMPOSED_SLANT)


def scatter(facts: Facts, rng: np.random.Generator, snap: int) -> Scene:
    """As `arrange`, but anywhere, without overlap: as a model that is not done learning may draw them.

    Raises:
        DataError: no such layout was found in ATTEMPTS attempts.
    """
    things, side = facts.objects, side_of(facts)
    grid = np.arange(0, SIZE - side + 1, snap)
    for _ in range(ATTEMPTS):
        corners: list[tuple[int, int]] = []
        free = np.ones((len(grid), len(grid)), bool)  # (y, x): corners whose square overlaps no other
        while len(corners) < len(things) and free.any():
            places = np.argwhere(free)
            y, x = grid[places[rng.integers(len(places))]].tolist()
            corners.append((x, y))
            free &= (np.abs(grid - y) >= side)[:, None] | (np.abs(grid - x) >= side)[None]
        placed = tuple(Placed(g.thing, g.colour, x, y, side) for g, (x, y) in zip(things, corners, strict=False))
        if len(placed) < len(things):
            continue
        if not facts.relation or composed_relation_holds(facts.relation, placed[0].centre, placed[1].centre, side):
            return Scene(facts, placed)
    raise DataError(f"{len(things)} things of {side} pixels found no room with snap {snap}; choose a smaller snap")


def render(scene: Scene, sprites: Sprites) -> np.ndarray:
    """The pixels of a scene; (SIZE, SIZE, 3) uint8, on white if its background is transparent."""
    return render_with_alpha(scene, sprites)[..., :3]


def render_with_alpha(scene: Scene, sprites: Sprites) -> np.ndarray:
    """As `render`, with alpha; (SIZE, SIZE, 4) uint8. The colours are those on the background, not the things' own."""
    transparent = scene.facts.background == TRANSPARENT
    page = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS["white" if transparent else scene.facts.background])
    cover = Image.new("L", (SIZE, SIZE), 0 if transparent else 255)
    for thing in scene.objects:
        border = thing.side // 16
        sprite = sprites.scaled(thing.thing, scene.facts.style, thing.colour, thing.side - 2 * border)
        place = (thing.x + border, thing.y + border)
        page.paste(sprite, place, sprite)
        if transparent:
            alpha = Image.new("L", (SIZE, SIZE), 0)
            alpha.paste(sprite.getchannel("A"), place)
            cover = ImageChops.lighter(cover, alpha)
    return np.dstack([np.asarray(page), np.asarray(cover)])
