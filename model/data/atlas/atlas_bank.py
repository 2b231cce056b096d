"""Captioned facts for training on the atlas: scenes of the core, then single things of the breadth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from model.data.atlas.store import AtlasSprites, Entry
from model.data.atlas.wording import entry_caption, entry_facts, settle_style, varied
from model.data.scenes.bank import SceneBank
from model.data.scenes.facts import Facts, Grammar
from model.data.scenes.things import BACKGROUNDS, TRANSPARENT
from model.data.scenes.wording import caption

WHITE, TRANSPARENT_SHARE = 0.5, 0.15  # of the backgrounds of the breadth; the rest are coloured
SCENES_TRANSPARENT = 0.2  # of the white backgrounds of scenes
# Rows of a thing that several styles draw, and of one that a single style draws.
ROWS_KNOWN, ROWS_SINGLE, ROWS_SENTENCE = 3, 1, 2


@dataclass(frozen=True)
class AtlasBank(SceneBank):
    """As SceneBank, with alpha.

    Attributes:
        scenes: number of rows, from the start, that are composed scenes.
    """

    scenes: int = 0
    alpha: bool = True


def build_atlas_bank(
    sprites: AtlasSprites, things: Sequence[str], styles: Sequence[str], size: int, snap: int, seed: int
) -> AtlasBank:
    """`size` captioned scenes without held-out combinations, then the breadth's training entries.

    Args:
        things, styles: names of those that scenes may show.
        snap: corners of a scene's things are multiples of this, pixels.
    """
    grammar = Grammar(sprites, things, styles)
    facts, captions = [], []
    for index in tqdm(range(size), desc="facts", unit="caption", disable=size < 10_000):
        rng = np.random.default_rng((seed, 0, index))
        sampled = grammar.sample(rng)
        if sampled.background == "white" and rng.random() < SCENES_TRANSPARENT:
            sampled = replace(sampled, background=TRANSPARENT)
        facts.append(sampled)
        captions.append(varied(settle_style(caption(sampled, rng), sampled, rng), rng))
    for place, entry in enumerate(sprites.entries):
        for visit in range(rows_of(entry)):
            rng = np.random.default_rng((seed, 2, place, visit))
            facts.append(entry_facts(entry, rng, random_background(rng)))
            captions.append(varied(entry_caption(entry, facts[-1], rng), rng))
    return AtlasBank(sprites, facts, captions, snap, seed, scenes=size)


def rows_of(entry: Entry) -> int:
    """Number of captions of an entry: more for what can be learned from several styles, none for what is held out."""
    if entry.split != "train":
        return 0
    if entry.sentence:
        return ROWS_SENTENCE
    return ROWS_KNOWN if entry.styles > 1 else ROWS_SINGLE


def random_background(rng: np.random.Generator) -> str:
    """The background of a single thing."""
    draw = float(rng.random())
    if draw < WHITE:
        return "white"
    if draw < WHITE + TRANSPARENT_SHARE:
        return TRANSPARENT
    names = list(BACKGROUNDS)
    return names[int(rng.integers(1, len(names)))]


def sample_facts(bank: AtlasBank, rng: np.random.Generator, breadth: float) -> tuple[int, Facts]:
    """A random row and its facts: one of the breadth with probability `breadth`."""
    low, high = (bank.scenes, len(bank)) if rng.random() < breadth else (0, bank.scenes)
    row = int(rng.integers(low, high))
    return row, bank.facts[row]
