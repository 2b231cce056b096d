"""Facts that a caption states about an image: sampled at random, with some combinations held out of training.

Composing, wording and scoring all start from `Facts`, so a caption is true of its image by construction. The categories
are GenEval's six (arXiv 2310.11513), `several`, and `portrait` where there are portraits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from model.data.scenes.sprites import Sprites
from model.data.scenes.things import BACKGROUNDS, COLOURS, RELATIONS, THINGS
from model.data.sources import DataError

# Category -> share of the training images, larger for what is learned slowly (docs/log.md).
CATEGORIES = {
    "single_object": 0.16, "two_objects": 0.14, "counting": 0.24, "colors": 0.1, "position": 0.16,
    "color_attribution": 0.18, "several": 0.02,
}  # fmt: skip
PORTRAIT = "portrait"  # not sampled by share: bank.py decides how many
SINGLE = "breadth"  # one thing of the atlas, alone: nothing samples it here (model/data/atlas)
SCORED_CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
# Kind of combination -> share of its combinations that training never shows.
HELD_OUT = {"style": 0.05, "pair": 0.10, "count": 0.10, "colour": 0.10}
WHITE_SHARE, SIZED_SHARE = 0.55, 0.3  # shares of white backgrounds and of single objects with a stated size
MIN_COLOURABLE_STYLES = 2


@dataclass(frozen=True, slots=True)
class Group:
    """`count` things of one kind; colour "" means the style's own colours."""

    thing: str
    count: int = 1
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a caption states about its image.

    Attributes:
        relation: of the first group's thing to the second's, a key of RELATIONS, or "".
        size: "", "small" or "big".
    """

    category: str
    style: str
    groups: tuple[Group, ...]
    background: str = "white"
    relation: str = ""
    size: str = ""

    @property
    def objects(self) -> tuple[Group, ...]:
        """One group per thing, so that a group of three appears three times."""
        return tuple(group for group in self.groups for _ in range(group.count))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Facts:
        return cls(**{**raw, "groups": tuple(Group(**group) for group in raw["groups"])})


@lru_cache(maxsize=65536)
def held_out(kind: str, *names: str) -> bool:
    """Return True if training never shows this combination; decided by a hash of its words alone."""
    digest = hashlib.sha256("|".join((kind, *names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT[kind]


def unseen(facts: Facts, of_style: bool = True) -> bool:
    """Return True if the facts contain a held-out combination, so that training may not use them.

    of_style: things in a style count, as they do unless a training shows every thing in every style.
    """
    return unseen_content(facts) or (of_style and unseen_style(facts))


def unseen_style(facts: Facts) -> bool:
    """Return True if training never shows one of the things in this style."""
    return any(held_out("style", group.thing, facts.style) for group in facts.groups)


def unseen_content(facts: Facts) -> bool:
    """As `unseen`, but ignoring styles: True for a held-out pair of things, or count or colour of a thing."""
    names = sorted(group.thing for group in facts.groups)
    return any(held_out("pair", a, b) for a, b in combinations(names, 2)) or any(
        (group.count > 1 and held_out("count", group.thing, str(group.count)))
        or (group.colour != "" and held_out("colour", group.thing, group.colour))
        for group in facts.groups
    )


class Grammar:
    """Sampler of facts over some of the things and styles of a set of sprites.

    Attributes:
        styles_held_out: things in a held-out style are unseen.

    Raises:
        DataError: a thing has no sprite in any of the styles.
    """

    def __init__(self, sprites: Sprites, things: Sequence[str], styles: Sequence[str], styles_held_out: bool = True):
        self.things, self.styles, self.styles_held_out = tuple(things), tuple(styles), styles_held_out
        for thing in self.things:
            if not any((thing, style) in sprites.rgba for style in self.styles):
                raise DataError(f"no sprite of {thing!r} in any of the styles {', '.join(self.styles)}")
        self.by_style = {s: tuple(t for t in self.things if (t, s) in sprites.rgba) for s in self.styles}
        often = [
            t for t in self.things if sum((t, s) in sprites.colourable for s in self.styles) >= MIN_COLOURABLE_STYLES
        ]
        self.colourable = {s: tuple(t for t in often if (t, s) in sprites.colourable) for s in self.styles}
        self.portraits = tuple((thing, style) for thing, style in sprites.rgba if thing not in THINGS)

    def sample(self, rng: np.random.Generator, category: str | None = None, want_unseen: bool = False) -> Facts:
        """Sample facts of a category (default: by the shares in CATEGORIES), with or without a held-out combination.

        Raises:
            DataError: no such facts were found in 10,000 attempts.
        """
        if category is None:
            category = str(rng.choice(list(CATEGORIES), p=np.array(list(CATEGORIES.values()))))
        for _ in range(10_000):
            facts = self._propose(rng, category)
            if facts and unseen(facts, self.styles_held_out) == want_unseen:
                return facts
        raise DataError(f"category {category!r} has no {'held-out ' if want_unseen else ''}combination to sample")

    def sample_comparable(self, rng: np.random.Generator, want_unseen: bool) -> Facts:
        """As `sample`, of the categories that have both: if no style is held out, a thing alone is never unseen."""
        if self.styles_held_out:
            return self.sample(rng, want_unseen=want_unseen)
        names = [name for name in CATEGORIES if name != "single_object"]
        shares = np.array([CATEGORIES[name] for name in names])
        return self.sample(rng, str(rng.choice(names, p=shares / shares.sum())), want_unseen)

    def sample_portrait(self, rng: np.random.Generator) -> Facts:
        """Sample facts of a portrait that training may show, on some background.

        Raises:
            DataError: the sprites include no portraits.
        """
        if not self.portraits:
            raise DataError("these sprites hold no portraits; train on those of data/scenes-more")
        while True:
            thing, style = self.portraits[int(rng.integers(len(self.portraits)))]
            facts = Facts(PORTRAIT, style, (Group(thing),), self._background(rng))
            if not unseen(facts, self.styles_held_out):
                return facts

    def _background(self, rng: np.random.Generator) -> str:
        names = list(BACKGROUNDS)
        return names[0] if rng.random() < WHITE_SHARE else names[int(rng.integers(1, len(names)))]

    def _propose(self, rng: np.random.Generator, category: str) -> Facts | None:
        style = str(rng.choice(self.styles))
        coloured = category in ("colors", "color_attribution")
        pool = self.colourable[style] if coloured else self.by_style[style]
        how_many = {"single_object": 1, "counting": 1, "colors": 1, "several": int(rng.integers(3, 5))}.get(category, 2)
        if len(pool) < how_many:
            return None
        chosen = [pool[i] for i in rng.permutation(len(pool))[:how_many]]
        groups = tuple(Group(thing) for thing in chosen)
        if coloured:
            colours = rng.permutation(list(COLOURS))[: len(groups)]
            groups = tuple(replace(g, colour=str(c)) for g, c in zip(groups, colours, strict=True))
        if category == "counting":
            groups = (replace(groups[0], count=int(rng.integers(2, 5))),)
        return Facts(
            category, style, groups, self._background(rng),
            relation=str(rng.choice(list(RELATIONS))) if category == "position" else "",
            size=str(rng.choice(("small", "big"))) if how_many == 1 and category == "single_object"
            and rng.random() < SIZED_SHARE else "",
        )  # fmt: skip
