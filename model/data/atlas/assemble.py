"""From collected pictures to the atlas: keys, held-out pairs, and no duplicates across the held-out line."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from model.data.atlas.collect import Picture
from model.data.atlas.hashes import Fingerprints, across_the_line, duplicates, fingerprints
from model.data.atlas.image_sets import EMOJI_SOURCES, FIREFOX, ICON_SETS, STYLE_PREFERENCE
from model.data.atlas.store import NUMBER, AtlasSprites, Entry
from model.data.scenes.clipart import CLIPART
from model.data.scenes.facts import held_out
from model.data.scenes.portraits import PORTRAITS
from model.data.scenes.sprites import Sprites, main_hue
from model.data.sources import CAPTIONS_PACKAGE

HELD_FROM_STYLES = 3  # a thing in fewer styles loses none to the held-out set


def assemble(core: Sprites, pictures: Sequence[Picture]) -> AtlasSprites:
    """The atlas of these pictures, beside the sprites of scenes."""
    prints = fingerprints([picture.sprite for picture in pictures])
    repeated = set(duplicates(prints, [picture.noun for picture in pictures]))
    styles = defaultdict(set)
    for place, picture in enumerate(pictures):
        if place not in repeated:
            styles[picture.noun].add(picture.style)
    held = np.array(
        [
            not picture.sentence
            and len(styles[picture.noun]) >= HELD_FROM_STYLES
            and held_out("style", picture.noun, picture.style)
            for picture in pictures
        ]
    )
    held[list(repeated)] = False
    held &= ~_twins_in_scenes(core, prints, held, pictures)
    leaked = set(across_the_line(prints, held)) - repeated
    kept = [place for place in range(len(pictures)) if place not in repeated and place not in leaked]
    entries = _entries([pictures[place] for place in kept], held[kept])
    about = _about(core, entries, pictures, dropped={"repeated": len(repeated), "across_the_line": len(leaked)})
    array = np.stack([pictures[place].sprite for place in kept])
    about["sha256"] = _digest(str(core.about["sha256"]), entries, array)
    about["digests"] = _digests_by_style(entries, array)
    return AtlasSprites(Sprites(core.rgba, about), entries, array)


def _twins_in_scenes(
    core: Sprites, prints: Fingerprints, held: np.ndarray, pictures: Sequence[Picture]
) -> np.ndarray:  # fmt: skip
    """(P,) bool, True for held-out pictures that a sprite of scenes shows too, except under the same held-out pair."""
    shown = [pair for pair in core.rgba if not held_out("style", *pair)]
    others = fingerprints([core.rgba[pair] for pair in shown])
    both = Fingerprints(
        np.concatenate([prints.bits, others.bits]), np.concatenate([prints.colours, others.colours])
    )  # fmt: skip
    places = np.arange(len(pictures), len(pictures) + len(shown))
    found = np.zeros(len(pictures), bool)
    for index in np.flatnonzero(held):
        found[index] = len(both.near(int(index), places)) > 0
    return found


def _entries(pictures: Sequence[Picture], held: np.ndarray) -> list[Entry]:
    """Entries with keys that are unique, and that no thing of scenes has: they end in a number."""
    trained = defaultdict(set)
    for picture, out in zip(pictures, held, strict=True):
        if not out:
            trained[picture.noun].add(picture.style)
    rank = {style: place for place, style in enumerate(STYLE_PREFERENCE)}
    default = {
        noun: min(styles, key=lambda style: (rank.get(style, len(rank)), style)) for noun, styles in trained.items()
    }
    seen, entries = Counter[tuple[str, str]](), []
    for picture, out in zip(pictures, held, strict=True):
        seen[picture.noun, picture.style] += 1
        entries.append(
            Entry(
                key=f"{picture.noun}{NUMBER}{seen[picture.noun, picture.style]}",
                noun=picture.noun, style=picture.style, split="heldout" if out else "train",
                styles=len(trained[picture.noun]), default=picture.style == default.get(picture.noun),
                also=picture.also, tags=picture.tags, keywords=picture.keywords,
                sentence=picture.sentence, one_colour=picture.one_colour,
                colourable=not picture.sentence and not picture.one_colour and main_hue(picture.sprite) is not None,
            )
        )  # fmt: skip
    return entries


def _about(core: Sprites, entries: list[Entry], pictures: Sequence[Picture], dropped: dict[str, int]) -> dict[str, Any]:
    known = {entry.noun for entry in entries if entry.styles > 1 and not entry.sentence}
    sources = [
        *EMOJI_SOURCES,
        FIREFOX,
        *(icons.source for icons in ICON_SETS),
        CLIPART,
        *(s for s, _ in PORTRAITS.values()),
    ]
    return {
        **core.about, "name": "atlas", "breadth": len(entries), "collected": len(pictures), **dropped,
        "nouns": len({entry.noun for entry in entries if not entry.sentence}), "nouns_in_two_styles": len(known),
        "splits": dict(Counter(entry.split for entry in entries)),
        "styles": dict(Counter(entry.style for entry in entries)),
        "captions": {"package": CAPTIONS_PACKAGE, "licence": "MIT"}, "sources": [asdict(s) for s in sources],
    }  # fmt: skip


def _digest(core: str, entries: list[Entry], array: np.ndarray) -> str:
    digest = hashlib.sha256(core.encode())
    for entry, sprite in zip(entries, array, strict=True):
        digest.update(repr(entry).encode() + np.ascontiguousarray(sprite).tobytes())
    return digest.hexdigest()


def _digests_by_style(entries: list[Entry], array: np.ndarray) -> dict[str, str]:
    """The first digits of each style's digest: where two builds differ, these name the source that differs."""
    places = defaultdict(list)
    for place, entry in enumerate(entries):
        places[entry.style].append(place)
    return {style: _digest("", [entries[i] for i in at], array[at])[:12] for style, at in places.items()}
