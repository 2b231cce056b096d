"""Captioned facts for training on the atlas: scenes of the core, then single things of the breadth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from model.data.atlas.store import AtlasSprites, Entry, in_styles
from model.data.atlas.wording import entry_caption, entry_facts, settle_style, varied
from model.data.scenes.bank import SceneBank
from model.data.scenes.facts import Facts, Grammar
from model.data.scenes.things import BACKGROUNDS, THINGS, TRANSPARENT
from model.data.scenes.wording import caption
from model.data.sources import DataError

WHITE, TRANSPARENT_SHARE = 0.5, 0.15  # of the backgrounds of the breadth; the rest are coloured
SCENES_TRANSPARENT = 0.2  # of the white backgrounds of scenes
# Rows of a thing that several styles draw, and of one that a single style draws.
ROWS_KNOWN, ROWS_SINGLE, ROWS_SENTENCE = 3, 1, 2


@dataclass(frozen=True)
class AtlasBank(SceneBank):
    """As SceneBank, with alpha.

    Attributes:
        scenes: number of rows, from the start, that are composed scenes.
        entries: of the breadth, as far as rows show them or may be asked for; none of a scene's own things.
        breadth_styles: as in `build_atlas_bank`.
    """

    scenes: int = 0
    alpha: bool = True
    entries: tuple[Entry, ...] = ()
    breadth_styles: tuple[str, ...] = ()


def build_atlas_bank(
    sprites: AtlasSprites, things: Sequence[str], styles: Sequence[str], size: int, snap: int, seed: int,
    breadth_styles: Sequence[str] = (), breadth: bool = True, styles_held_out: bool = True,
) -> AtlasBank:  # fmt: skip
    """`size` captioned scenes without held-out combinations, then the breadth's training entries.

    The breadth leaves the scenes' own things to the scenes: its cut-outs fill the image, those of scenes do not, and
    under one caption the model would learn the mean of both (docs/log.md, 2026-11-29).

    Args:
        things, styles: names of those that scenes may show.
        snap: corners of a scene's things are multiples of this, pixels.
        breadth_styles: of single things, which are then those that two of these styles draw; (): all.
        breadth: False: scenes alone.
        styles_held_out: False: scenes show the things in held-out styles, too.

    Raises:
        DataError: there is nothing in the breadth.
    """
    grammar = Grammar(sprites, things, styles, styles_held_out)
    facts, captions = [], []
    for index in tqdm(range(size), desc="facts", unit="caption", disable=size < 10_000):
        rng = np.random.default_rng((seed, 0, index))
        sampled = grammar.sample(rng)
        if sampled.background == "white" and rng.random() < SCENES_TRANSPARENT:
            sampled = replace(sampled, background=TRANSPARENT)
        facts.append(sampled)
        captions.append(varied(settle_style(caption(sampled, rng), sampled, rng), rng))
    entries = beside_scenes(sprites.entries, things, breadth_styles) if breadth else []
    for place, entry in enumerate(entries):
        for visit in range(rows_of(entry)):
            rng = np.random.default_rng((seed, 2, place, visit))
            facts.append(entry_facts(entry, rng, random_background(rng)))
            captions.append(varied(entry_caption(entry, facts[-1], rng), rng))
    if breadth and len(facts) == size:
        known = ", ".join(sorted({entry.style for entry in sprites.entries}))
        raise DataError(
            f"breadth_styles {', '.join(breadth_styles)}: no two of them draw one thing; the atlas has {known}"
            if breadth_styles else "the atlas has no single things but those of scenes: set breadth = 0"
        )  # fmt: skip
    return AtlasBank(
        sprites, facts, captions, snap, seed, scenes=size, entries=tuple(entries), breadth_styles=tuple(breadth_styles),
    )  # fmt: skip


def beside_scenes(entries: Sequence[Entry], things: Sequence[str], breadth_styles: Sequence[str] = ()) -> list[Entry]:
    """The entries in these styles, without those of the things that scenes show; see `build_atlas_bank`."""
    of_scenes = names_of(things)
    return [entry for entry in in_styles(entries, breadth_styles) if entry.noun not in of_scenes]


def names_of(things: Sequence[str]) -> set[str]:
    """All names of things of scenes: captions' and emojibase's."""
    known = [THINGS[thing] for thing in things]
    return {name for thing in known for name in (thing.name, thing.plural, thing.label, *thing.synonyms)}


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
