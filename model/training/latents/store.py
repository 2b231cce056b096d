"""The packed tokens of a data set: latents.npy, captions.jsonl and about.json in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from model.data.sources import DataError

ABOUT, LATENTS, CAPTIONS = "about.json", "latents.npy", "captions.jsonl"
FORMAT = "latents"


def is_latent_cache(folder: Path) -> bool:
    """Return True if the folder was written by `python -m model.training.latents.build`."""
    file = folder / ABOUT
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("format") == FORMAT


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
            DataError: it is missing, unfinished, or its files do not belong together.
        """
        if not is_latent_cache(folder):
            raise DataError(f"{folder} holds no encoded images: python -m model.training.latents.build makes them")
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self.latents = np.load(folder / LATENTS, mmap_mode="r")
        lines = (folder / CAPTIONS).read_text(encoding="utf-8").splitlines()
        self.captions: list[str] = [json.loads(line)["caption"] for line in lines]
        if not len(self.latents) == len(self.captions) == self.about["images"]:
            raise DataError(
                f"{folder}: {len(self.latents)} images and {len(self.captions)} captions of {self.about['images']}; "
                "build it again"
            )
