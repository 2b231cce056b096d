"""Small data for tests: squares whose captions are true, at the tiny preset's 16 pixels, and sprites of discs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from model.data.atlas.collect import Picture
from model.data.dataset import Dataset, Item
from model.data.scenes.sprites import SIDE, Sprites
from model.data.scenes.things import STYLES, THINGS

THINGS_USED = tuple(THINGS)[:24]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "black": (10, 10, 10)}
PLACES = {"left": slice(1, 8), "right": slice(8, 15)}


def squares() -> Dataset:
    """Eight images: four colours, left and right."""
    images, items = [], []
    for (colour, rgb), (place, columns) in itertools.product(COLOURS.items(), PLACES.items()):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[4:12, columns] = rgb
        images.append(image)
        caption = f"{colour} square {place}"
        items.append(Item(f"{colour} {place}", "plain", (caption, f"a {caption}", caption, caption), "train"))
    return Dataset(np.stack(images), items, {"name": "squares"})


def discs(things: Sequence[str]) -> Sprites:
    """Discs of one hue each in every style: real sprites need npm packages, composing does not."""
    yy, xx = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    disc = (yy**2 + xx**2 < (SIDE / 2) ** 2).astype(np.uint8) * 255
    rgba = {}
    for place, thing in enumerate(things):
        colour = np.array([(40 + 8 * place) % 256, (200 - 6 * place) % 256, 30], np.uint8)
        rgba |= {(thing, s): np.dstack([np.broadcast_to(colour, (SIDE, SIDE, 3)), disc]) for s in STYLES}
    return Sprites(rgba, {"name": "discs"})


def drawing(seed: int) -> np.ndarray:
    """(SIDE, SIDE, 4) coarse random patches on a transparent ground; neighbouring seeds look nothing alike."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 255, (7, 7, 4), np.uint8)
    patches[..., 3] = np.where(rng.random((7, 7)) < 0.7, 255, 0)
    return np.kron(patches, np.ones((SIDE // 7, SIDE // 7, 1), np.uint8))


NOUNS = [f"gadget {letter}" for letter in "abcdefghijklmnop"]


def pictures() -> list[Picture]:
    """16 nouns in four styles, a one-colour noun and a portrait."""
    styles = ("3d", "noto", "flat", "clipart")
    found = [Picture(n, s, drawing(4 * i + j)) for i, n in enumerate(NOUNS) for j, s in enumerate(styles)]
    found.append(Picture("anvil", "silhouette", drawing(900), one_colour=True))
    found.append(Picture("person with green hair", "pixel", drawing(901), sentence=True))
    return found
