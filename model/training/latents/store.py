"""The packed tokens of a data set: latents.npy, captions.jsonl and about.json in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from model.data.folders import read_lines, reading, require
from model.data.sources import DataError

ABOUT, LATENTS, CAPTIONS = "about.json", "latents.npy", "captions.jsonl"
FORMAT = "latents"


def is_latent_cache(folder: Path) -> bool:
    """Return True if the folder was written by `python -m model.training.latents.build`."""
    return (folder / LATENTS).is_file()


class LatentCache:
    """Tokens and captions, the tokens mapped into memory.

    Attributes:
        latents: (P, N, C) float16, or (P, N) int32 if discrete.
        captions: P captions.
        about: size, source, digest and sizes of the tokenizer.
    """

    def __init__(self, folder: Path):
        """Open a finished folder.

        Raises:
            DataError: it is missing or of another kind, or its files are damaged or do not belong together.
        """
        require(folder, LATENTS)
        self.folder = folder
        with reading(folder, "build it again"):
            self.about: dict[str, Any] = dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
            self.latents = np.load(folder / LATENTS, mmap_mode="r")
            self.captions: list[str] = [line["caption"] for line in read_lines(folder / CAPTIONS)]
            if not len(self.latents) == len(self.captions) == self.about["images"]:
                raise DataError(
                    f"{folder}: {len(self.latents)} images and {len(self.captions)} captions of "
                    f"{self.about['images']}; build it again"
                )
