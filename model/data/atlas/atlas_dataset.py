"""A fixed sample of the atlas as a `Dataset` with alpha, for training and measuring the image tokenizer."""

from __future__ import annotations

import numpy as np

from model.data.atlas.atlas_bank import random_background
from model.data.atlas.store import AtlasSprites, Entry
from model.data.atlas.wording import entry_facts, entry_prompt
from model.data.dataset import Dataset, Item
from model.data.scenes.compose import arrange, render_with_alpha
from model.data.scenes.dataset import TOKENIZER_SEED
from model.data.scenes.facts import SCORED_CATEGORIES, Facts, Grammar
from model.data.scenes.things import STYLES, THINGS
from model.data.scenes.wording import prompt

BREADTH_EVERY = 5, 3  # of five images, three are single things: they are the more diverse


def atlas_dataset(atlas: AtlasSprites, things: int, snap: int, train: int, unseen: int) -> Dataset:
    """Compose `train` images of trained combinations and entries, and `unseen` of held-out ones, half of each kind."""
    grammar = Grammar(atlas, tuple(THINGS)[:things], STYLES)
    trained = [entry for entry in atlas.entries if entry.split == "train"]
    held = [entry for entry in atlas.entries if entry.split == "heldout"]
    order = np.random.default_rng(TOKENIZER_SEED).permutation(len(trained))
    images, items = [], []
    for index in range(train + unseen):
        rng = np.random.default_rng((TOKENIZER_SEED, index))
        out = index >= train
        every, single = BREADTH_EVERY
        if out and held and index % 2:
            facts, words = _single(held[index // 2 % len(held)], rng)
        elif not out and trained and index % every < single:
            facts, words = _single(trained[order[index % len(trained)]], rng)
        else:
            category = SCORED_CATEGORIES[index % len(SCORED_CATEGORIES)] if out else None
            facts = grammar.sample(rng, category, want_unseen=out)
            words = prompt(facts)
        images.append(render_with_alpha(arrange(facts, rng, snap), atlas))
        concept = " and ".join(group.thing for group in facts.groups)
        items.append(Item(concept, facts.style, (words,), "unseen" if out else "train"))
    return Dataset(np.stack(images), items, atlas.about)


def _single(entry: Entry, rng: np.random.Generator) -> tuple[Facts, str]:
    facts = entry_facts(entry, rng, random_background(rng))
    return facts, entry_prompt(entry, facts.groups[0].colour)
