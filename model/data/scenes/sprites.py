"""Sprites: cut-out images of single things, packed into one file; recolouring of those with one main hue."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.data.folders import reading, replacing, require
from model.data.scenes.things import COLOURS, STYLES, THINGS, Thing
from model.data.sources import DataError

SIDE = 112  # side of a stored sprite, pixels: the largest at which a thing is rendered
SPRITES_FILE, ABOUT_FILE = "sprites.npz", "about.json"  # of a folder of sprites
# A sprite may be recoloured if this share of it is saturated and that part has one hue (the mean of unit vectors at the
# hue angles has this length): a red apple with its small leaf may be, a rainbow or a black ball may not.
SATURATED_SHARE, ONE_HUE = 0.5, 0.9
WINDOW = 45.0  # degrees around the main hue that move to the new one: the apple's leaf stays green


class Sprites:
    """Sprites by (thing, style).

    Attributes:
        rgba: {(thing, style): (SIDE, SIDE, 4) uint8}, not premultiplied.
        about: sources, licences, digest; what `make data` printed.
        words: things by the key of their sprites; a portrait is a thing whose name describes it.
        tags: {thing: keywords that are true of every image of it}.
    """

    def __init__(self, rgba: dict[tuple[str, str], np.ndarray], about: dict[str, Any]):
        self.rgba, self.about = rgba, about
        portraits = [Thing(**{**raw, "synonyms": tuple(raw["synonyms"])}) for raw in about.get("portraits", ())]
        self.words = THINGS | {portrait.label: portrait for portrait in portraits}
        self.tags: dict[str, list[str]] = about.get("tags", {})
        self.colourable = frozenset(pair for pair, sprite in rgba.items() if main_hue(sprite) is not None)
        self.scaled = lru_cache(maxsize=8192)(self._scaled)

    @property
    def styles(self) -> tuple[str, ...]:
        """Styles that have things, not portraits; the six emoji styles come first."""
        known = {style for thing, style in self.rgba if thing in THINGS}
        return tuple(s for s in STYLES if s in known) + tuple(sorted(known.difference(STYLES)))

    def __reduce__(self) -> tuple[type[Sprites], tuple[dict[tuple[str, str], np.ndarray], dict[str, Any]]]:
        """Pickle without the cache: a cached method would arrive in a loader process without its object."""
        return Sprites, (self.rgba, self.about)

    def _scaled(self, thing: str, style: str, colour: str, side: int) -> Image.Image:
        """A sprite in a colour ("": its own) at `side` pixels; RGBA. Pillow premultiplies alpha when it resizes."""
        sprite = self.rgba[thing, style]
        if colour:
            sprite = recoloured(sprite, colour)
        return Image.fromarray(sprite).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)

    def save(self, folder: Path) -> None:
        """Write every sprite as lossless WebP into sprites.npz, a few megabytes for all, and `about` beside it."""
        with replacing(folder, last=ABOUT_FILE) as partial:
            self._write(partial)

    def _write(self, folder: Path) -> None:
        blobs = {f"{thing}|{style}": np.frombuffer(_webp(s), np.uint8) for (thing, style), s in self.rgba.items()}
        np.savez(folder / SPRITES_FILE, allow_pickle=False, **blobs)
        (folder / ABOUT_FILE).write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Sprites:
        """Read what `save` wrote.

        Raises:
            DataError: `folder` holds no sprites, or damaged ones.
        """
        require(folder, SPRITES_FILE)
        with reading(folder), (folder / SPRITES_FILE).open("rb") as file, np.load(file, allow_pickle=False) as packed:
            rgba = {}
            for key in packed.files:
                thing, style = key.split("|")
                rgba[thing, style] = np.asarray(Image.open(io.BytesIO(packed[key].tobytes())).convert("RGBA"))
            return cls(rgba, dict(json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))))


def _webp(sprite: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(sprite).save(out, "WEBP", lossless=True, exact=True, method=4)
    return out.getvalue()


def cut_out(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """Crop an RGBA image to its visible part and centre it in a square; (side, side, 4) uint8.

    Raises:
        DataError: no pixel of the image is visible.
    """
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise DataError("an icon is empty: the package's image could not be rendered")
    visible = image.crop(box)
    scale = side / max(visible.size)
    size = tuple(max(1, round(length * scale)) for length in visible.size)
    small = visible.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def main_hue(sprite: np.ndarray) -> float | None:
    """The main hue of a sprite in degrees, or None if it has none or several."""
    hue, saturation, value = hsv(sprite[..., :3])
    opaque = sprite[..., 3] > 128
    strong = opaque & (saturation > 0.35) & (value > 0.3)
    if not strong.any() or strong.sum() < SATURATED_SHARE * opaque.sum():
        return None
    mean = np.exp(1j * np.radians(hue[strong])).mean()
    return float(np.degrees(np.angle(mean)) % 360) if abs(mean) >= ONE_HUE else None


def recoloured(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Shift the main hue of a sprite to `colour`; scaling saturation and value, not setting them, keeps the shading.

    Raises:
        DataError: the sprite has no main hue.
    """
    base = main_hue(sprite)
    if base is None:
        raise DataError("a sprite without one main hue cannot be recoloured")
    hue, saturation, value = hsv(sprite[..., :3])
    target_hue, target_saturation, target_value = COLOURS[colour]
    away = (hue - base + 180) % 360 - 180  # signed degrees
    moved = (np.abs(away) < WINDOW) & (saturation > 0.15)
    middle = moved & (sprite[..., 3] > 128)
    # About a third of the spread of hues: a warm highlight must not become a colour with another name.
    hue = np.where(moved, target_hue + 0.35 * away, hue) % 360
    factor_s = target_saturation / max(float(np.median(saturation[middle])), 1e-3)
    factor_v = target_value / max(float(np.median(value[middle])), 1e-3)
    saturation = np.where(moved, np.clip(saturation * factor_s, 0, 1), saturation)
    value = np.where(moved, np.clip(value * factor_v, 0, 1), value)
    return np.concatenate([rgb(hue, saturation, value), sprite[..., 3:]], axis=-1)


def hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert (..., 3) uint8 RGB to hue in degrees, saturation and value in [0, 1], each (...)."""
    p = pixels.astype(np.float32) / 255
    high, low = p.max(-1), p.min(-1)
    chroma = high - low
    safe = np.maximum(chroma, 1e-6)
    r, g, b = p[..., 0], p[..., 1], p[..., 2]
    sector = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    return 60 * sector * (chroma > 0), chroma / np.maximum(high, 1e-6), high


def rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Convert hue, saturation and value to (..., 3) uint8 RGB: the inverse of `hsv`."""
    out = []
    for n in (5, 3, 1):
        k = (n + hue / 60) % 6
        out.append(value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)))
    return (np.stack(out, -1) * 255 + 0.5).astype(np.uint8)
