"""A fixed sample of the atlas as a `Dataset` with alpha, for training and measuring the image tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.data.atlas.atlas_bank import random_background
from model.data.atlas.store import AtlasSprites, Entry
from model.data.atlas.wording import entry_facts, entry_prompt
from model.data.dataset import Dataset, Item
from model.data.scenes.compose import arrange, render_with_alpha
from model.data.scenes.dataset import TOKENIZER_SEED
from model.data.scenes.facts import Facts, Grammar
from model.data.scenes.things import STYLES
from model.data.scenes.wording import prompt

BREADTH_EVERY = 5, 3  # of five images, three are single things: they are the more diverse


def atlas_dataset(
    atlas: AtlasSprites, things: Sequence[str], snap: int, train: int, unseen: int,
    known: Sequence[Entry] | None = None, styles_held_out: bool = True, seed: int = TOKENIZER_SEED,
) -> Dataset:  # fmt: skip
    """Compose `train` images of trained combinations and entries, and `unseen` of held-out ones, in one mix of kinds.

    Args:
        known: single things that may appear, if some of them are held out: otherwise one kind of image would be in one
            split alone, and the two could not be compared. None: all trained ones, whatever is held out.
        styles_held_out: scenes of things in a held-out style are held-out combinations.
    """
    grammar = Grammar(atlas, things, STYLES, styles_held_out)
    entries = atlas.entries if known is None else known
    trained = [entry for entry in entries if entry.split == "train"]
    held = [entry for entry in entries if entry.split == "heldout"]
    if known is not None and not held:
        trained = []
    order = np.random.default_rng(seed).permutation(len(trained))
    images, items = [], []
    for index in range(train + unseen):
        rng = np.random.default_rng((seed, index))
        out = index >= train
        every, single = BREADTH_EVERY
        if (held if out else trained) and index % every < single:
            place = (index - train) // every * single + index % every
            entry = held[place % len(held)] if out else trained[order[index % len(trained)]]
            facts, words = _single(entry, rng)
        else:
            facts = grammar.sample_comparable(rng, want_unseen=out)
            words = prompt(facts)
        images.append(render_with_alpha(arrange(facts, rng, snap), atlas))
        concept = " and ".join(group.thing for group in facts.groups)
        items.append(Item(concept, facts.style, (words,), "unseen" if out else "train"))
    return Dataset(np.stack(images), items, atlas.about)


def _single(entry: Entry, rng: np.random.Generator) -> tuple[Facts, str]:
    facts = entry_facts(entry, rng, random_background(rng))
    return facts, entry_prompt(entry, facts.groups[0].colour, facts.background)
