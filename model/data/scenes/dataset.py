"""A fixed sample of scenes as a `Dataset`, for training and measuring the image tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.data.dataset import Dataset, Item
from model.data.scenes.compose import arrange, render
from model.data.scenes.facts import SCORED_CATEGORIES, Grammar
from model.data.scenes.sprites import SPRITES_FILE, Sprites
from model.data.scenes.things import THINGS
from model.data.scenes.wording import prompt

TOKENIZER_SEED = 20241019
PORTRAIT_EVERY = 8  # images, where there are portraits


def is_scene_folder(folder: Path) -> bool:
    """Return True if a data folder holds sprites, as opposed to a packed image set."""
    return (folder / SPRITES_FILE).exists()


def scene_dataset(sprites: Sprites, things: int, snap: int, train: int, unseen: int) -> Dataset:
    """Compose `train` images without a held-out combination and `unseen` with one, of the first `things` things."""
    grammar = Grammar(sprites, tuple(THINGS)[:things], sprites.styles)
    images, items = [], []
    for index in range(train + unseen):
        rng = np.random.default_rng((TOKENIZER_SEED, index))
        held = index >= train
        if grammar.portraits and not held and index % PORTRAIT_EVERY == 0:
            facts = grammar.sample_portrait(rng)
        else:
            facts = grammar.sample(
                rng, SCORED_CATEGORIES[index % len(SCORED_CATEGORIES)] if held else None, want_unseen=held
            )
        images.append(render(arrange(facts, rng, snap), sprites))
        concept = " and ".join(group.thing for group in facts.groups)
        items.append(Item(concept, facts.style, (prompt(facts, sprites.words),), "unseen" if held else "train"))
    return Dataset(np.stack(images), items, sprites.about)
