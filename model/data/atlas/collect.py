"""Every image of the breadth, as cut-outs with a noun and a style: emoji, icon sets, clip art, portraits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from model.data.atlas.clipart_titles import folder_digest, titled_drawings
from model.data.atlas.image_sets import EMOJI_SOURCES, FIREFOX, ICON_SETS, IconSet
from model.data.atlas.naming import canonical, icon_noun
from model.data.captions import normalise_hexcode
from model.data.scenes.clipart import CLIPART, fetch_clipart, render_drawing
from model.data.scenes.portraits import PORTRAITS, looks, render_portraits
from model.data.scenes.sprites import SIDE, cut_out
from model.data.scenes.things import COLOURS
from model.data.sources import DataError, fetch_package, load_emojibase, open_cutouts, render_icon

PORTRAITS_EACH = 800
TAGS = 2  # keywords of an emoji that captions may use
SMALLEST_SHARE = 0.02  # of the square: a cut-out that covers less is an empty or broken drawing
# Groups of emojibase: faces, people, animals, food, places, leisure, objects; not symbols and flags.
GROUPS = (0, 1, 3, 4, 5, 6, 7)
NOT_NOUNS = re.compile(r"o.clock|thirty|:|person |^(wo)?man |with .*hair|keycap|couple|family|medal$|mailbox|tone")
# Digest of the drawings that are used, of openclipart-svg 1:0.18+dfsg-19, checked at every build.
CLIPART_SHA256 = "dbeb0af90d0bb7b47f04e70c1d81c885045b2842a66bbbaea97630e025a791d3"


@dataclass
class Picture:
    """One cut-out and what may be said about it.

    Attributes:
        noun: the canonical name of the thing.
        also: other nouns that name it.
        tags: keywords that are true of it, for some of the captions. keywords: all, those in its name left out.
        sentence: the noun is a description of its own, as of portraits, and takes no plural or synonym.
        one_colour: black, to be drawn in any colour.
    """

    noun: str
    style: str
    sprite: np.ndarray = field(repr=False)
    also: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    sentence: bool = False
    one_colour: bool = False


def emoji_pictures(cache: Path, progress: bool = True) -> Iterator[Picture]:
    """Yield every emoji of GROUPS, without skin tones, in every style that has it."""
    drawers = {source.style: open_cutouts(source, cache, 2 * SIDE) for source in EMOJI_SOURCES}
    entries = [
        entry for entry in load_emojibase(cache)
        if entry.get("group") in GROUPS and not NOT_NOUNS.search(entry["label"].lower())
    ]  # fmt: skip
    folder = fetch_package(FIREFOX.package, cache)
    firefox = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    for entry in tqdm(entries, desc="emoji", unit="concept", disable=not progress):
        label = entry["label"].replace("’", "'")
        noun = canonical(label)
        also = (label,) if noun != label else ()
        keywords = tuple(tag for tag in entry.get("tags", ()) if tag not in noun.lower().split())
        words = (also, keywords[:TAGS], keywords)
        for style, draw in drawers.items():
            image = draw(normalise_hexcode(entry["hexcode"]))
            if image is not None and (sprite := _cut(image)) is not None:
                yield Picture(noun, style, sprite, *words)
        if (name := re.sub(r"[^a-z]", "", label.lower())) in firefox["icons"]:
            sprite = _cut(render_icon(firefox, name, 2 * SIDE))
            if sprite is not None:
                yield Picture(noun, FIREFOX.style, sprite, *words)


def icon_pictures(icons: IconSet, cache: Path, progress: bool = True) -> Iterator[Picture]:
    """Yield the icons of a set whose names are nouns."""
    folder = fetch_package(icons.source.package, cache)
    table = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    skipped = _names_in(folder, icons.skipped)
    chosen: dict[str, str] = {}
    for name in sorted(table["icons"]):
        size = re.fullmatch(r"(.+)-(16|20|24|28|32|48)", name) if icons.source.style == "fluent icon" else None
        if name not in skipped:
            chosen[size[1] if size else name] = name  # the last, which is the largest, of several sizes
    for plain, name in tqdm(chosen.items(), desc=icons.source.style, unit="icon", disable=not progress):
        second = bool(icons.suffix) and plain.endswith(icons.suffix)
        noun = icon_noun(plain.removesuffix(icons.suffix) if second else plain)
        if noun is None:
            continue
        sprite = _cut(render_icon(table, name, 2 * SIDE))
        if sprite is not None:
            style = icons.second_style if second else icons.source.style
            yield Picture(noun, style, sprite, one_colour=icons.one_colour)


def clipart_pictures(known: Mapping[str, int], cache: Path, progress: bool = True) -> Iterator[Picture]:
    """Yield Open Clip Art's drawings of things that another set draws too.

    Raises:
        DataError: the package's drawings are not those that this version was made with; the message says how many.
    """
    root = fetch_clipart(cache)
    found = list(titled_drawings(root, known))
    digest = folder_digest([file for _, file in found], root)
    if digest != CLIPART_SHA256:
        raise DataError(
            f"the {len(found)} drawings chosen from {root} have the digest {digest[:16]}…, expected "
            f"{CLIPART_SHA256[:16]}…: the package, or the nouns of the other sets, have changed. If that is meant, "
            "look at the new sheet and update CLIPART_SHA256 in model/data/atlas/collect.py"
        )
    for noun, file in tqdm(found, desc="clip art", unit="drawing", disable=not progress):
        try:
            sprite = _cut(render_drawing(file, 2 * SIDE))
        except (DataError, ValueError):
            continue  # the renderer refuses some old files; always the same ones
        if sprite is not None:
            yield Picture(noun, CLIPART.style, sprite)


def portrait_pictures(cache: Path, count: int = PORTRAITS_EACH) -> Iterator[Picture]:
    """Yield portraits whose descriptions are true by construction."""
    for style in PORTRAITS:
        chosen = looks(style, count)
        for number, image in enumerate(render_portraits(style, chosen, cache, 2 * SIDE)):
            thing = chosen[number].thing(style, number)
            yield Picture(thing.name, style, cut_out(image), also=thing.synonyms, sentence=True)


def collect(cache: Path, progress: bool = True) -> list[Picture]:
    """Fetch every set and cut out everything that has a noun.

    Raises:
        DataError: a package could not be fetched, or differs from the one that was chosen.
    """
    found = list(emoji_pictures(cache, progress))
    for icons in ICON_SETS:
        found += icon_pictures(icons, cache, progress)
    counts: dict[str, int] = {}
    for picture in found:
        counts[picture.noun] = counts.get(picture.noun, 0) + 1
    found += clipart_pictures(counts, cache, progress)
    found += portrait_pictures(cache)
    return found


def tinted(sprite: np.ndarray, colour: str) -> np.ndarray:
    """A one-colour cut-out in a named colour; "black" and "" leave it as it is."""
    if colour in ("", "black"):
        return sprite
    hue, saturation, value = COLOURS[colour]
    red, green, blue = (np.asarray(Image.new("HSV", (1, 1), (
        round(hue / 360 * 255), round(saturation * 255), round(value * 255))).convert("RGB"))[0, 0])  # fmt: skip
    out = sprite.copy()
    out[..., :3] = (red, green, blue)
    return out


def _cut(image: Image.Image) -> np.ndarray | None:
    """The cut-out, or None if next to nothing of it is visible."""
    alpha = np.asarray(image.getchannel("A"))
    if (alpha > 128).mean() < SMALLEST_SHARE:
        return None
    return cut_out(image)


def _names_in(folder: Path, categories: frozenset[str]) -> set[str]:
    """Icons of these categories, by the package's metadata."""
    file = folder / "metadata.json"
    table = json.loads(file.read_text(encoding="utf-8")).get("categories", {}) if file.exists() else {}
    return {name for category, names in table.items() if category in categories for name in names}
