"""A fixed sample of scenes as a `Dataset`, for training and measuring the image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.data.dataset import Dataset, Item
from model.data.scenes.compose import arrange, render
from model.data.scenes.facts import Grammar
from model.data.scenes.sprites import SPRITES_FILE, Sprites
from model.data.scenes.wording import prompt

TOKENIZER_SEED = 20241019
PORTRAIT_EVERY = 8  # images, where there are portraits


def is_scene_folder(folder: Path) -> bool:
    """Return True if a data folder holds sprites, as opposed to a packed image set."""
    return (folder / SPRITES_FILE).exists()


def scene_dataset(
    sprites: Sprites, things: Sequence[str], snap: int, train: int, unseen: int, portraits: bool = True,
    styles_held_out: bool = True, seed: int = TOKENIZER_SEED,
) -> Dataset:  # fmt: skip
    """Compose `train` images of these things without a held-out combination and `unseen` with one.

    Both have the categories in the shares of training. With `portraits` the first shows those that there are, too.
    styles_held_out: things in a held-out style are held-out combinations.
    """
    grammar = Grammar(sprites, things, sprites.styles, styles_held_out)
    images, items = [], []
    for index in range(train + unseen):
        rng = np.random.default_rng((seed, index))
        held = index >= train
        if portraits and grammar.portraits and not held and index % PORTRAIT_EVERY == 0:
            facts = grammar.sample_portrait(rng)
        else:
            facts = grammar.sample_comparable(rng, want_unseen=held)
        images.append(render(arrange(facts, rng, snap), sprites))
        concept = " and ".join(group.thing for group in facts.groups)
        items.append(Item(concept, facts.style, (prompt(facts, sprites.words),), "unseen" if held else "train"))
    return Dataset(np.stack(images), items, sprites.about)
