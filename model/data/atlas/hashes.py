"""Perceptual hashes of cut-outs, to find images that are the same drawing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

NEAR_BITS = 5  # of 63: hashes that differ in fewer bits, with colours alike, show the same drawing
NEAR_COLOUR = 20.0  # largest difference of the mean colour of a ninth of the image, of 255
_SIDE, _LOW = 32, 8  # the hash is the signs of the low frequencies of a small grey image


def _cosines() -> np.ndarray:
    """The first _LOW rows of the DCT-II of length _SIDE."""
    place = (np.arange(_SIDE) + 0.5) * np.pi / _SIDE
    return np.cos(np.arange(_LOW)[:, None] * place)


@dataclass(frozen=True)
class Fingerprints:
    """N images' hashes.

    Attributes:
        bits: (N,) uint64, one bit per low frequency.
        colours: (N, 27) float32, mean RGB of 3 × 3 parts, on white.
    """

    bits: np.ndarray
    colours: np.ndarray

    def near(self, index: int, others: np.ndarray) -> np.ndarray:
        """Those of `others`, positions (K,), that show nearly the same image as `index`."""
        distance = np.bitwise_count(self.bits[others] ^ self.bits[index])
        colour = np.abs(self.colours[others] - self.colours[index]).max(1)
        return others[(distance < NEAR_BITS) & (colour < NEAR_COLOUR)]


def fingerprint(sprite: np.ndarray) -> tuple[int, np.ndarray]:
    """The hash and the colours of one cut-out, (side, side, 4) uint8 RGBA."""
    image = Image.fromarray(sprite)
    page = Image.new("RGB", image.size, "white")
    page.paste(image, (0, 0), image)
    grey = np.asarray(page.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    basis = _cosines()
    low = (basis @ grey @ basis.T).flatten()[1:]  # without the mean
    bits = sum(1 << place for place, value in enumerate(low > np.median(low)) if value)
    colours = np.asarray(page.resize((3, 3), Image.Resampling.BOX), np.float32).flatten()
    return bits, colours


def fingerprints(sprites: list[np.ndarray]) -> Fingerprints:
    """The fingerprints of N cut-outs."""
    pairs = [fingerprint(sprite) for sprite in sprites]
    return Fingerprints(np.array([bits for bits, _ in pairs], np.uint64), np.stack([colours for _, colours in pairs]))


def duplicates(prints: Fingerprints, groups: list[str]) -> list[int]:
    """Positions of images that nearly equal an earlier one of the same group."""
    by_group: dict[str, list[int]] = {}
    dropped = []
    for index, group in enumerate(groups):
        kept = by_group.setdefault(group, [])
        if kept and len(prints.near(index, np.array(kept))):
            dropped.append(index)
        else:
            kept.append(index)
    return dropped


def across_the_line(prints: Fingerprints, held_out: np.ndarray) -> list[int]:
    """Positions of training images that nearly equal a held-out one. held_out: (N,) bool."""
    training, found = np.flatnonzero(~held_out), set[int]()
    for index in np.flatnonzero(held_out):
        found.update(prints.near(int(index), training).tolist())
    return sorted(found)
