"""A fixed sample of scenes as a `Dataset`: what the image tokenizer trains on and is measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.data.dataset import Dataset, Item
from model.data.scenes.compose import arrange, render
from model.data.scenes.facts import SUITE, Grammar
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import THINGS
from model.data.scenes.wording import prompt

TOKENIZER_SEED = 20241019
PORTRAIT_EVERY = 8  # pictures, where there are portraits


def sprites_file(folder: Path) -> Path:
    """Whose presence makes a data folder one of scenes."""
    return folder / "sprites.npz"


def scene_pictures(sprites: Sprites, things: int, snap: int, train: int, unseen: int) -> Dataset:
    """`train` pictures without and `unseen` pictures with a held-out combination, of the first `things` things."""
    grammar = Grammar(sprites, tuple(THINGS)[:things], sprites.styles)
    images, items = [], []
    for index in range(train + unseen):
        rng = np.random.default_rng((TOKENIZER_SEED, index))
        held = index >= train
        if grammar.portraits and not held and index % PORTRAIT_EVERY == 0:
            facts = grammar.draw_portrait(rng)
        else:
            facts = grammar.draw(rng, SUITE[index % len(SUITE)] if held else None, want_unseen=held)
        images.append(render(arrange(facts, rng, snap), sprites))
        concept = " and ".join(group.thing for group in facts.groups)
        items.append(Item(concept, facts.style, (prompt(facts, sprites.words),), "unseen" if held else "train"))
    return Dataset(np.stack(images), items, sprites.about)
