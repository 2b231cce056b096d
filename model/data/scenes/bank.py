"""Training's endless supply: a fixed list of captioned facts, each drawn in a new arrangement whenever it comes up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.data.scenes.compose import Scene, arrange, render
from model.data.scenes.facts import Facts, Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.wording import caption


@dataclass(frozen=True)
class SceneBank:
    """`captions[i]` words `facts[i]`. Captions are finite so that their text states can be computed once."""

    sprites: Sprites
    facts: list[Facts]
    captions: list[str]
    snap: int
    seed: int

    def __len__(self) -> int:
        return len(self.facts)

    def scene(self, row: int, visit: int) -> Scene:
        """Row `row` in its arrangement number `visit`."""
        return arrange(self.facts[row], np.random.default_rng((self.seed, 1, row, visit)), self.snap)

    def picture(self, row: int, visit: int) -> np.ndarray:
        """That scene as (SIZE, SIZE, 3) uint8."""
        return render(self.scene(row, visit), self.sprites)

    def pictures(self, rows: Sequence[int], visit: int) -> np.ndarray:
        """(B, SIZE, SIZE, 3) uint8"""
        return self.drawn(rows, visit)[1]

    def drawn(self, rows: Sequence[int], visit: int) -> tuple[list[Scene], np.ndarray]:
        """B scenes and their pictures."""
        scenes = [self.scene(int(row), visit) for row in rows]
        return scenes, np.stack([render(scene, self.sprites) for scene in scenes])


def build_bank(
    sprites: Sprites,
    things: Sequence[str],
    styles: Sequence[str],
    size: int,
    snap: int,
    seed: int,
    portraits: float = 0.0,
    tags: float = 0.0,
) -> SceneBank:
    """`size` captioned facts without held-out combinations; a function of the arguments alone.

    portraits: share of the facts that are one. tags: share of the captions that end in a keyword of a thing.
    """
    grammar = Grammar(sprites, things, styles)
    rngs = (np.random.default_rng((seed, 0, index)) for index in range(size))
    facts, captions = [], []
    for rng in rngs:
        portrait = portraits > 0 and rng.random() < portraits
        facts.append(grammar.draw_portrait(rng) if portrait else grammar.draw(rng))
        captions.append(caption(facts[-1], rng, sprites.words))
        if tags > 0 and rng.random() < tags:
            known = [tag for group in facts[-1].groups for tag in sprites.tags.get(group.thing, ())]
            captions[-1] += f", {rng.choice(known)}" if known else ""
    return SceneBank(sprites, facts, captions, snap, seed)
