"""Where training gets its pictures: a fixed set that is encoded once, or scenes that are drawn anew at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.config import ConfigError
from model.data.dataset import Dataset
from model.data.scenes.bank import SceneBank, build_bank
from model.data.scenes.compose import SIZE
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import THINGS
from model.inference.precision import autocast
from model.networks.text_encoder import TextEncoder
from model.networks.tokenizer import PcaSkipTokenizer, to_pixels
from model.training.caption_cache import TextBank, build_text_bank
from model.training.layout_loss import cell_classes
from model.training.recipe import Recipe
from model.training.trainer import generator


def open_bank(recipe: Recipe) -> SceneBank:
    """The captioned facts of a recipe of scenes.

    Raises:
        ConfigError: the recipe has no table [scenes].
        DataError: there are no sprites yet.
    """
    s = recipe.scenes
    if s is None:
        raise ConfigError("the recipe has no table [scenes]")
    sprites = Sprites.load(Path(recipe.data))
    things = tuple(THINGS)[: s.things]
    return build_bank(sprites, things, s.styles, s.captions, s.snap, recipe.seed, s.portraits, s.tags)


class Feed(Protocol):
    """bank: the text states of every row. about: what a checkpoint says of its data."""

    bank: TextBank
    about: dict[str, Any]

    def __len__(self) -> int:
        """How many captioned rows there are."""
        ...

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """A training step's rows (B,), tokens (B, N, C) and, of scenes, what covers each token (B, N, 2).

        Depends on `step` alone. For the last see model/training/layout_loss.py.
        """
        ...

    def example(self, row: int) -> tuple[np.ndarray, str]:
        """A picture (H, W, 3) of a row and its caption, for sample sheets."""
        ...


def epoch_order(rows: int, batch: int, step: int, seed: int) -> Tensor:
    """Which rows step `step` trains on: every row once an epoch, a new order each epoch."""
    per_epoch = max(1, rows // batch)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(rows, generator=generator(seed + 1, epoch))
    return order[place * batch : (place + 1) * batch]


@torch.no_grad()
def encode_pictures(tokenizer: PcaSkipTokenizer, images: Tensor, batch: int = 128) -> Tensor:
    """(P, H, W, 3) uint8 -> (P, N, C)"""
    return torch.cat([tokenizer.encode(to_pixels(part)) for part in images.split(batch)])


class PictureFeed:
    """The `train` split of a packed data set: the pictures do not change, so they are encoded once."""

    def __init__(self, dataset: Dataset, tokenizer: PcaSkipTokenizer, encoder: TextEncoder, cache: Path,
                 batch: int, seed: int):  # fmt: skip
        self.dataset, self.batch, self.seed = dataset, batch, seed
        self.rows = dataset.indices("train")
        self.latents = encode_pictures(tokenizer, torch.from_numpy(dataset.images[self.rows]))  # (P, N, C)
        self.bank = build_text_bank(encoder, [dataset.items[row].captions for row in self.rows], cache)
        self.about = {
            "data": dataset.about,
            "vocabulary": dataset.concepts("train"),
            "styles": list(dict.fromkeys(item.style for item in dataset.items)),
        }

    def __len__(self) -> int:
        return len(self.latents)

    def tokens(self, step: int) -> tuple[Tensor, Tensor, None]:
        rows = epoch_order(len(self), self.batch, step, self.seed)
        return rows, self.latents[rows], None

    def example(self, row: int) -> tuple[np.ndarray, str]:
        item = self.dataset.items[self.rows[row]]
        return self.dataset.images[self.rows[row]], item.captions[0]


@dataclass(frozen=True)
class SceneBatches(TorchDataset):
    """Element `step` is a training step's rows, pictures and layouts; loader processes draw them ahead of time."""

    bank: SceneBank
    batch: int
    seed: int
    grid: int

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = epoch_order(len(self.bank), self.batch, step, self.seed)
        scenes, pictures = self.bank.drawn(rows.tolist(), visit=step)
        return rows, torch.from_numpy(pictures), torch.from_numpy(cell_classes(scenes, self.grid))


class SceneFeed:
    """Scenes, drawn on the CPU by `loaders` processes (0: between the steps) and encoded on `device`."""

    def __init__(self, scenes: SceneBank, tokenizer: PcaSkipTokenizer, encoder: TextEncoder, cache: Path,
                 batch: int, seed: int, loaders: int, device: torch.device):  # fmt: skip
        self.scenes, self.loaders, self.device = scenes, loaders, device
        self.tokenizer = tokenizer.to(device)
        self.batches = SceneBatches(scenes, batch, seed, SIZE // tokenizer.config.stride)
        self.bank = build_text_bank(encoder, [(caption,) for caption in scenes.captions], cache).to(device)
        self.about = {
            "data": {key: value for key, value in scenes.sprites.about.items() if key not in ("portraits", "tags")},
            "vocabulary": list(
                dict.fromkeys(g.thing for facts in scenes.facts for g in facts.groups if g.thing in THINGS)
            ),
            "styles": list(dict.fromkeys(facts.style for facts in scenes.facts)),
        }
        self._next, self._ahead = -1, iter(())  # type: tuple[int, Iterator[tuple[Tensor, Tensor, Tensor]]]

    def __len__(self) -> int:
        return len(self.scenes)

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if step != self._next:  # the first step, or one after a jump
            self._ahead = self._load_from(step)
        self._next = step + 1
        rows, images, cells = next(self._ahead)
        with torch.no_grad(), autocast(self.device):
            tokens = self.tokenizer.encode(to_pixels(images.to(self.device, non_blocking=True)))
        return rows, tokens.float(), cells

    def _load_from(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        ahead: dict[str, Any] = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if self.loaders else {}
        steps = range(step, step + 10_000_000)  # training stops by its own clock
        return iter(DataLoader(self.batches, sampler=steps, batch_size=None, num_workers=self.loaders, **ahead))

    def example(self, row: int) -> tuple[np.ndarray, str]:
        return self.scenes.picture(row, visit=0), self.scenes.captions[row]
