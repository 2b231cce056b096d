"""Cut-out pictures of single things, packed into one file, and honest recolouring of the flat-coloured ones."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.data.scenes.things import COLOURS, STYLES, THINGS, Thing
from model.data.sources import DataError

SIDE = 112  # pixels of a stored sprite: as large as a thing is ever drawn
# A sprite may be recoloured when this share of it is saturated, and that part is of one hue (length of the mean of
# unit vectors at the hue angles): a red apple with its small leaf may, a rainbow or a black ball may not.
SATURATED_SHARE, ONE_HUE = 0.5, 0.9
WINDOW = 45.0  # degrees around the main hue that move to the new one: the apple's leaf stays green


class Sprites:
    """Cut-outs by (thing, style).

    Attributes:
        rgba: {(thing, style): (SIDE, SIDE, 4) uint8}, not premultiplied.
        about: sources, licences, digest; what `make data` printed.
        words: things by the names that sprites have; a portrait is a thing whose name describes it.
        tags: {thing: keywords that are true of every picture of it}.
    """

    def __init__(self, rgba: dict[tuple[str, str], np.ndarray], about: dict[str, Any]):
        self.rgba, self.about = rgba, about
        portraits = [Thing(**{**raw, "synonyms": tuple(raw["synonyms"])}) for raw in about.get("portraits", ())]
        self.words = THINGS | {portrait.label: portrait for portrait in portraits}
        self.tags: dict[str, list[str]] = about.get("tags", {})
        self.colourable = frozenset(pair for pair, sprite in rgba.items() if main_hue(sprite) is not None)
        self.drawn = lru_cache(maxsize=8192)(self._drawn)

    @property
    def styles(self) -> tuple[str, ...]:
        """That draw things, the six of everything first; not those of portraits."""
        known = {style for thing, style in self.rgba if thing in THINGS}
        return tuple(s for s in STYLES if s in known) + tuple(sorted(known.difference(STYLES)))

    def __reduce__(self) -> tuple[type[Sprites], tuple[dict[tuple[str, str], np.ndarray], dict[str, Any]]]:
        """Loader processes get a cache of their own: a cached method would arrive there without its object."""
        return Sprites, (self.rgba, self.about)

    def _drawn(self, thing: str, style: str, colour: str, side: int) -> Image.Image:
        """The sprite in a colour ("": as it is) at `side` pixels; Pillow premultiplies while it filters."""
        sprite = self.rgba[thing, style]
        if colour:
            sprite = recoloured(sprite, colour)
        return Image.fromarray(sprite).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)

    def save(self, folder: Path) -> None:
        """sprites.npz: every sprite as lossless WebP, a few megabytes for all."""
        folder.mkdir(parents=True, exist_ok=True)
        blobs = {f"{thing}|{style}": np.frombuffer(_webp(s), np.uint8) for (thing, style), s in self.rgba.items()}
        np.savez(folder / "sprites.npz", allow_pickle=False, **blobs)
        (folder / "about.json").write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Sprites:
        """Read what `save` wrote.

        Raises:
            DataError: nothing is there.
        """
        if not (folder / "about.json").exists():
            raise DataError(f"no sprites in {folder}: run `make data` first")
        with np.load(folder / "sprites.npz", allow_pickle=False) as packed:
            rgba = {}
            for key in packed.files:
                thing, style = key.split("|")
                rgba[thing, style] = np.asarray(Image.open(io.BytesIO(packed[key].tobytes())).convert("RGBA"))
        return cls(rgba, json.loads((folder / "about.json").read_text(encoding="utf-8")))


def _webp(sprite: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(sprite).save(out, "WEBP", lossless=True, exact=True, method=4)
    return out.getvalue()


def cut_out(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """RGBA of any size -> its visible part, centred in a square of `side` pixels; (side, side, 4) uint8."""
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise DataError("an icon is empty: the package's picture could not be drawn")
    visible = image.crop(box)
    scale = side / max(visible.size)
    size = tuple(max(1, round(length * scale)) for length in visible.size)
    small = visible.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)


def main_hue(sprite: np.ndarray) -> float | None:
    """The one hue of a sprite in degrees, or None where it has none or several."""
    hue, saturation, value = hsv(sprite[..., :3])
    opaque = sprite[..., 3] > 128
    strong = opaque & (saturation > 0.35) & (value > 0.3)
    if strong.sum() < SATURATED_SHARE * opaque.sum():
        return None
    mean = np.exp(1j * np.radians(hue[strong])).mean()
    return float(np.degrees(np.angle(mean)) % 360) if abs(mean) >= ONE_HUE else None


def recoloured(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Turn the main hue into `colour`; shading survives, because saturation and value are scaled, not set.

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
    # half the spread of hues: what was a warm highlight must not become another colour's name
    hue = np.where(moved, target_hue + 0.35 * away, hue) % 360
    factor_s = target_saturation / max(float(np.median(saturation[middle])), 1e-3)
    factor_v = target_value / max(float(np.median(value[middle])), 1e-3)
    saturation = np.where(moved, np.clip(saturation * factor_s, 0, 1), saturation)
    value = np.where(moved, np.clip(value * factor_v, 0, 1), value)
    return np.concatenate([rgb(hue, saturation, value), sprite[..., 3:]], axis=-1)


def hsv(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 3) uint8 -> hue in degrees, saturation and value in [0, 1]."""
    p = pixels.astype(np.float32) / 255
    high, low = p.max(-1), p.min(-1)
    chroma = high - low
    safe = np.maximum(chroma, 1e-6)
    r, g, b = p[..., 0], p[..., 1], p[..., 2]
    sector = np.where(high == r, (g - b) / safe % 6, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4))
    return 60 * sector * (chroma > 0), chroma / np.maximum(high, 1e-6), high


def rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Inverse of `hsv`; (..., 3) uint8."""
    out = []
    for n in (5, 3, 1):
        k = (n + hue / 60) % 6
        out.append(value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)))
    return (np.stack(out, -1) * 255 + 0.5).astype(np.uint8)
