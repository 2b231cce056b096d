"""The packed cut-outs of the breadth, read from a memory-mapped array, beside the sprites of scenes.

A folder of the atlas is a folder of scene sprites (model/data/scenes/sprites.py) with two more files: breadth.npy,
(P, SIDE, SIDE, 4) uint8, and breadth.jsonl, one line per cut-out in the same order.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.data.atlas.collect import tinted
from model.data.folders import read_lines, reading, require
from model.data.scenes.sprites import Sprites, recoloured
from model.data.sources import DataError

ARRAY_FILE, LINES_FILE = "breadth.npy", "breadth.jsonl"
SPLITS = ("train", "heldout")
_LISTS = ("also", "tags", "keywords")  # of an entry, in its line of JSON
NUMBER = " #"  # in a key, between the noun and the number of the drawing


@dataclass(frozen=True, slots=True)
class Entry:
    """One cut-out of the breadth.

    Attributes:
        key: unique; the thing that facts name.
        noun, also, tags, keywords, sentence, one_colour: as of collect.Picture.
        split: "train", or "heldout": nothing trains on it, but on the same thing in other styles.
        styles: number of styles that train on the thing.
        default: a prompt without a style draws this style of the thing.
        colourable: it has one main hue, which may be changed.
    """

    key: str
    noun: str
    style: str
    split: str
    styles: int
    default: bool
    also: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    sentence: bool = False
    one_colour: bool = False
    colourable: bool = False


def in_styles(entries: Sequence[Entry], styles: Sequence[str]) -> list[Entry]:
    """The entries of things that at least two of `styles` train, in these styles alone; all entries, if there are none.

    The first of `styles` that draws a thing is the one that a prompt without a style gets.
    """
    if not styles:
        return list(entries)
    trained = defaultdict(set)
    for entry in entries:
        if entry.split == "train" and entry.style in styles and not entry.sentence:
            trained[entry.noun].add(entry.style)
    first = {noun: min(drawn, key=styles.index) for noun, drawn in trained.items() if len(drawn) > 1}
    return [
        replace(entry, styles=len(trained[entry.noun]), default=entry.style == first[entry.noun])
        for entry in entries
        if entry.noun in first and entry.style in styles and not entry.sentence
    ]


class AtlasSprites(Sprites):
    """Sprites of scenes, and the breadth.

    Attributes:
        entries: of the breadth, in the array's order.
    """

    def __init__(self, core: Sprites, entries: Sequence[Entry], array: np.ndarray, folder: Path | None = None):
        self.entries, self.folder, self.array = list(entries), folder, array
        self.places = {(entry.key, entry.style): place for place, entry in enumerate(self.entries)}
        super().__init__(core.rgba, core.about)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder's name: every loader process maps the array itself."""
        if self.folder is None:
            raise TypeError("an atlas that was not read from a folder cannot be sent to another process")
        return AtlasSprites.load, (self.folder,)

    def _scaled(self, thing: str, style: str, colour: str, side: int) -> Image.Image:
        place = self.places.get((thing, style))
        if place is None:
            return super()._scaled(thing, style, colour, side)
        sprite = np.asarray(self.array[place])
        if self.entries[place].one_colour:
            sprite = tinted(sprite, colour)
        elif colour:
            sprite = recoloured(sprite, colour)
        return Image.fromarray(sprite).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)

    def _write(self, folder: Path) -> None:
        """The sprites of scenes and the breadth."""
        np.save(folder / ARRAY_FILE, self.array)
        lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in self.entries]
        (folder / LINES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        super()._write(folder)

    @classmethod
    def load(cls, folder: Path) -> AtlasSprites:
        """Read what `save` wrote; the array stays on disk.

        Raises:
            DataError: `folder` holds no atlas, or its files are damaged or do not belong together.
        """
        require(folder, LINES_FILE)
        with reading(folder):
            raw = read_lines(folder / LINES_FILE)
            entries = [Entry(**{**row, **{key: tuple(row[key]) for key in _LISTS}}) for row in raw]
            array = np.load(folder / ARRAY_FILE, mmap_mode="r")
        if len(array) != len(entries):
            raise DataError(f"{folder}: {len(array)} cut-outs but {len(entries)} lines; run `make data` again")
        return cls(Sprites.load(folder), entries, array, folder)


def is_atlas_folder(folder: Path) -> bool:
    """Return True if a data folder holds a breadth."""
    return (folder / LINES_FILE).exists()


def open_sprites(folder: Path) -> Sprites:
    """The sprites of a folder, with the breadth if it has one.

    Raises:
        DataError: `folder` holds no sprites.
    """
    return AtlasSprites.load(folder) if is_atlas_folder(folder) else Sprites.load(folder)
