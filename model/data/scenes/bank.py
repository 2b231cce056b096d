"""Scenes for training: a fixed list of captioned facts, each rendered in a new arrangement at every visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from model.data.scenes.compose import Scene, arrange, render, render_with_alpha
from model.data.scenes.facts import Facts, Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.wording import caption


@dataclass(frozen=True)
class SceneBank:
    """Captioned facts; `captions[i]` states `facts[i]`.

    The captions are a fixed list so that their text states can be computed once. An image is a function of its row and
    the number of the visit.

    Attributes:
        alpha: images have a fourth channel.
    """

    sprites: Sprites
    facts: list[Facts]
    captions: list[str]
    snap: int
    seed: int
    alpha: bool = False

    def __len__(self) -> int:
        return len(self.facts)

    def scene(self, row: int, visit: int) -> Scene:
        """The scene of row `row`, arranged for visit number `visit`."""
        return arrange(self.facts[row], np.random.default_rng((self.seed, 1, row, visit)), self.snap)

    def image(self, row: int, visit: int) -> np.ndarray:
        """The render of `scene(row, visit)`; (SIZE, SIZE, 3) uint8."""
        return render(self.scene(row, visit), self.sprites)

    def _pixels(self, scene: Scene) -> np.ndarray:
        return render_with_alpha(scene, self.sprites) if self.alpha else render(scene, self.sprites)

    def images(self, rows: Sequence[int], visit: int) -> np.ndarray:
        """The renders of B rows; (B, SIZE, SIZE, 3) uint8, or 4 channels with alpha."""
        return self.scenes_and_images(rows, visit)[1]

    def scenes_and_images(self, rows: Sequence[int], visit: int) -> tuple[list[Scene], np.ndarray]:
        """The scenes of B rows and their renders, as `images` gives them."""
        scenes = [self.scene(int(row), visit) for row in rows]
        return scenes, np.stack([self._pixels(scene) for scene in scenes])


def build_bank(
    sprites: Sprites,
    things: Sequence[str],
    styles: Sequence[str],
    size: int,
    snap: int,
    seed: int,
    portraits: float = 0.0,
    tags: float = 0.0,
    styles_held_out: bool = True,
) -> SceneBank:
    """`size` captioned facts without held-out combinations; a function of the arguments alone.

    Args:
        things, styles: names of those that may appear.
        snap: corners of things are multiples of this, pixels.
        portraits: share of the facts that describe a portrait.
        tags: share of the captions that end in a keyword of a thing.
        styles_held_out: False: things in held-out styles appear, too.
    """
    grammar = Grammar(sprites, things, styles, styles_held_out)
    rngs = (np.random.default_rng((seed, 0, index)) for index in range(size))
    facts, captions = [], []
    for rng in tqdm(rngs, total=size, desc="facts", unit="caption", disable=size < 10_000):
        portrait = portraits > 0 and rng.random() < portraits
        facts.append(grammar.sample_portrait(rng) if portrait else grammar.sample(rng))
        captions.append(caption(facts[-1], rng, sprites.words))
        if tags > 0 and rng.random() < tags:
            known = [tag for group in facts[-1].groups for tag in sprites.tags.get(group.thing, ())]
            captions[-1] += f", {rng.choice(known)}" if known else ""
    return SceneBank(sprites, facts, captions, snap, seed)
