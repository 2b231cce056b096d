"""The packed data set: one array of pixels, one JSON line per image, one JSON file about the whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.data.folders import read_lines, reading, replacing, require
from model.data.sources import DataError

# "heldout": the concept is trained in other styles. "tokenizer": trains the image tokenizer only. "unseen": nothing.
SPLITS = ("train", "heldout", "tokenizer", "unseen")


@dataclass(frozen=True, slots=True)
class Item:
    """Description of one image: its concept, style, captions and split (see SPLITS)."""

    concept: str
    style: str
    captions: tuple[str, ...]
    split: str


class Dataset:
    """Images and their descriptions, in memory.

    Attributes:
        images: (N, H, W, 3) uint8.
        items: N descriptions, in the same order.
        about: counts, licences, versions; what `make data` printed.
    """

    def __init__(self, images: np.ndarray, items: Sequence[Item], about: dict):
        self.images, self.items, self.about = images, list(items), about

    def indices(self, splits: str | Iterable[str]) -> np.ndarray:
        """Positions of all images of the given split or splits, ascending; int64."""
        wanted = {splits} if isinstance(splits, str) else set(splits)
        return np.array([i for i, item in enumerate(self.items) if item.split in wanted], dtype=np.int64)

    def concepts(self, split: str = "train") -> list[str]:
        """Names of the concepts with at least one image in the split, in data set order."""
        return list(dict.fromkeys(item.concept for item in self.items if item.split == split))

    def digest(self) -> str:
        """SHA-256 of pixels and descriptions, equal for two builds if and only if they are identical."""
        hasher = hashlib.sha256(np.ascontiguousarray(self.images).tobytes())
        hasher.update(json.dumps([asdict(item) for item in self.items], sort_keys=True).encode())
        return hasher.hexdigest()

    def save(self, folder: Path) -> None:
        """Write images.npy, items.jsonl and about.json to `folder`."""
        lines = [json.dumps(asdict(item), ensure_ascii=False) for item in self.items]
        with replacing(folder, last="about.json") as partial:
            np.save(partial / "images.npy", self.images)
            (partial / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (partial / "about.json").write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Dataset:
        """Read what `save` wrote.

        Raises:
            DataError: the folder is missing or of another kind, or its files are damaged or do not belong together.
        """
        require(folder, "images.npy")
        with reading(folder):
            images = np.load(folder / "images.npy")
            rows = read_lines(folder / "items.jsonl")
            if len(rows) != len(images):
                raise DataError(f"{folder}: {len(images)} images but {len(rows)} descriptions; run `make data` again")
            items = [Item(row["concept"], row["style"], tuple(row["captions"]), row["split"]) for row in rows]
            return cls(images, items, dict(json.loads((folder / "about.json").read_text(encoding="utf-8"))))
