"""Sprites from packages: every thing in six emoji styles and, optionally, clip art, portraits and tags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.data.captions import normalise_hexcode
from model.data.scenes.clipart import CLIPART, FILES, MissingToolError, fetch_clipart, render_clipart
from model.data.scenes.portraits import PORTRAITS, looks, render_portraits
from model.data.scenes.sprites import SIDE, Sprites, cut_out
from model.data.scenes.things import STYLES, THINGS, Thing
from model.data.sources import CAPTIONS_PACKAGE, SCENE_SOURCES, load_emojibase, open_cutouts

PORTRAITS_EACH = 200  # portraits of each style
# The tags of emojibase that are true of any image of the thing: no colours, no moods, no jokes.
TAGS = frozenset(
    """
    animal berry bird birthday building camping candy celebration christmas citrus clothing desert dessert fantasy
    flower food forest fruit fungus garden halloween insect instrument jewel love marsupial mountain music nature
    ocean pet plant rain school sea ship snow space sport sweet tool travel tropical vegetable vehicle weather
""".split()
)


def build_sprites(cache: Path, things: dict[str, Thing] = THINGS, progress: bool = True) -> Sprites:
    """Fetch the packages and cut out every thing in every style that has it.

    Raises:
        DataError: a package could not be fetched.
    """
    codes = {e["label"].replace("’", "'"): normalise_hexcode(e["hexcode"]) for e in load_emojibase(cache)}
    drawers = {source.style: open_cutouts(source, cache, 2 * SIDE) for source in SCENE_SOURCES}
    rgba = {}
    for thing in tqdm(things.values(), desc="sprites", unit="thing", disable=not progress):
        for style in STYLES:
            image = drawers[style](codes[thing.label])
            if image is not None:
                rgba[thing.name, style] = cut_out(image)
    sources = [asdict(source) for source in SCENE_SOURCES]
    about = {
        "name": "scenes", "things": len(things), "sprites": len(rgba), "sprite_pixels": SIDE,
        "captions": {"package": CAPTIONS_PACKAGE, "licence": "MIT"}, "sources": sources, "sha256": _digest(rgba),
    }  # fmt: skip
    return Sprites(rgba, about)


def add_optional_sprites(
    sprites: Sprites, cache: Path, portraits_each: int = PORTRAITS_EACH
) -> tuple[Sprites, list[str]]:
    """Add clip art, portraits and tags to sprites.

    Returns:
        The sprites, and a line on each source that was left out because this machine lacks a program for it.

    Raises:
        DataError: a source could not be fetched, or its files differ from the chosen ones.
    """
    rgba, left_out = dict(sprites.rgba), []
    sources = list(sprites.about["sources"])
    try:
        folder = fetch_clipart(cache)
    except MissingToolError as error:
        left_out.append(f"clip art: {error}")
    else:
        for thing in tqdm(FILES, desc="clip art", unit="thing"):
            rgba[thing, CLIPART.style] = cut_out(render_clipart(folder, thing, 2 * SIDE))
        sources.append(asdict(CLIPART))
    known = []
    for style, (source, _) in PORTRAITS.items():
        chosen = looks(style, portraits_each)
        for number, image in enumerate(render_portraits(style, chosen, cache, 2 * SIDE)):
            known.append(chosen[number].thing(style, number))
            rgba[known[-1].label, style] = cut_out(image)
        sources.append(asdict(source))
    about: dict[str, Any] = {
        **sprites.about, "name": "scenes-more", "sprites": len(rgba), "sources": sources, "sha256": _digest(rgba),
        "tags": tags(load_emojibase(cache)), "portraits": [asdict(portrait) for portrait in known],
    }  # fmt: skip
    return Sprites(rgba, about), left_out


def tags(table: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Keywords by the name of the thing, from the emojibase table; things without keywords are absent."""
    keywords = {e["label"].replace("’", "'"): e.get("tags", ()) for e in table}
    found = {thing.name: sorted(TAGS.intersection(keywords.get(thing.label, ()))) for thing in THINGS.values()}
    return {name: kept for name, kept in found.items() if kept}


def _digest(rgba: dict[tuple[str, str], np.ndarray]) -> str:
    digest = hashlib.sha256()
    for (name, style), sprite in sorted(rgba.items()):
        digest.update(f"{name}|{style}".encode() + sprite.tobytes())
    return digest.hexdigest()
