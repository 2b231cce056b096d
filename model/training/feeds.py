"""Feeds of training batches: a fixed image set, encoded once, or scenes, composed and encoded at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from model.data.atlas.atlas_bank import AtlasBank, build_atlas_bank
from model.data.atlas.known_words import keywords, known_words
from model.data.atlas.store import AtlasSprites, open_sprites
from model.data.dataset import Dataset
from model.data.scenes.bank import SceneBank, build_bank
from model.data.scenes.compose import SIZE
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import THINGS
from model.data.sources import DataError
from model.inference.precision import autocast
from model.networks.factory import AnyTokenizer
from model.networks.text_encoder import TextEncoder
from model.networks.tokenizer import encode_tokens, to_pixels
from model.process_group import Share
from model.training.auxiliary.layout_loss import cell_classes
from model.training.captions.caption_cache import CaptionCache, build_caption_cache
from model.training.captions.keyword_hints import keyword_hints
from model.training.recipe import Recipe, SceneRecipe
from model.training.trainer import step_generator

WHOLE = Share()


def open_scenes(recipe: Recipe, s: SceneRecipe) -> SceneBank:
    """The captioned facts of a recipe with a [scenes] table.

    Raises:
        DataError: the sprites are missing, or lack a style, a breadth, portraits or tags that the recipe wants.
    """
    sprites = open_sprites(Path(recipe.data))
    _check_wishes(recipe.data, s, sprites)
    things = tuple(THINGS)[: s.things]
    if isinstance(sprites, AtlasSprites):
        styles, breadth = s.breadth_styles, s.breadth > 0
        return build_atlas_bank(
            sprites, things, s.styles, s.captions, s.snap, recipe.seed, styles, breadth, s.styles_held_out
        )
    return build_bank(
        sprites, things, s.styles, s.captions, s.snap, recipe.seed, s.portraits, s.tags, s.styles_held_out
    )


def _check_wishes(data: str, s: SceneRecipe, sprites: Sprites) -> None:
    """Raise DataError if the recipe wants what these sprites have not: it would be left out without a word."""
    entries = sprites.entries if isinstance(sprites, AtlasSprites) else None
    known = {"styles": list(sprites.styles), "breadth_styles": sorted({entry.style for entry in entries or ()})}
    for key, styles in (("styles", s.styles), ("breadth_styles", s.breadth_styles if entries and s.breadth else ())):
        if missing := [style for style in styles if style not in known[key]]:
            raise DataError(f"{key}: {data} has no style {missing[0]!r}; it has {', '.join(known[key])}")
    if s.breadth and entries is None:
        raise DataError(f"{data} has no single things for breadth = {s.breadth:g}; run `make data`")
    for key, share, some in (
        ("portraits", s.portraits, sprites.about.get("portraits")),
        ("tags", s.tags, sprites.tags),
    ):
        if share and entries is not None:
            raise DataError(f"{key} = {share:g}: an atlas shows {key} with its single things alone; set {key} = 0")
        if share and not some:
            raise DataError(f"{key} = {share:g}: {data} has no {key}; set {key} = 0, or train on data/scenes-more")


class Feed(Protocol):
    """Source of training batches; a row is one captioned image.

    Attributes:
        captions: text states of every row.
        about: the data's entries in a checkpoint's config.json.
    """

    captions: CaptionCache
    about: dict[str, Any]

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch of a step, of which a rank gets its share of B'; a function of `step` alone.

        Returns:
            Rows (B,) of all ranks, tokens (B', N, C), or (B', N) int64 if discrete, and, for scenes, the classes of
            what covers each token, (B', N, 2) as `layout_loss.cell_classes` gives them.
        """
        ...

    def prepare(self, step: int) -> None:
        """Begin to make the batch of a step, which `tokens` will be asked for next, if a device can do so by itself."""
        ...

    def example(self, row: int) -> tuple[np.ndarray, str]:
        """An image (H, W, 3) of a row and its caption, for sample sheets."""
        ...


def epoch_order(rows: int, batch: int, step: int, seed: int) -> Tensor:
    """The (batch,) rows that step `step` trains on: every row once per epoch, in a new order each epoch."""
    if batch == 0:  # of a kind that has no share of so small a batch
        return torch.empty(0, dtype=torch.int64)
    per_epoch = max(1, rows // batch)
    epoch, position = divmod(step, per_epoch)
    return _permutation(rows, seed, epoch)[position * batch : (position + 1) * batch]


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch; kept, because a step wants a small part of it."""
    return torch.randperm(rows, generator=step_generator(seed + 1, epoch))


def singles_of(batch: int, breadth: float) -> int:
    """Number of single things in a batch that has a share of them."""
    return round(breadth * batch)


def mixed_order(scenes: int, rows: int, breadth: float, batch: int, step: int, seed: int) -> Tensor:
    """The (batch,) rows of a step: scenes, then a share of rows from `scenes` on; each kind has epochs of its own."""
    singles = singles_of(batch, breadth)
    return torch.cat(
        [
            epoch_order(scenes, batch - singles, step, seed),
            scenes + epoch_order(rows - scenes, singles, step, seed + 2),
        ]
    )


@torch.no_grad()
def encode_images(tokenizer: AnyTokenizer, images: Tensor, batch: int = 128) -> Tensor:
    """(P, H, W, 3) uint8 images -> (P, N, C) tokens, or (P, N) int64 if discrete."""
    return torch.cat([encode_tokens(tokenizer, to_pixels(part)) for part in images.split(batch)])


class ImageFeed:
    """The `train` split of a packed data set. Its images do not change, so they are encoded once."""

    def __init__(self, dataset: Dataset, tokenizer: AnyTokenizer, encoder: TextEncoder, cache: Path,
                 batch: int, seed: int, share: Share = WHOLE):  # fmt: skip
        self.dataset, self.batch, self.seed, self.share = dataset, batch, seed, share
        self.rows = dataset.indices("train")
        self.latents = encode_images(tokenizer, torch.from_numpy(dataset.images[self.rows]))  # (P, N, C) or (P, N)
        self.captions = build_caption_cache(encoder, [dataset.items[row].captions for row in self.rows], cache)
        self.about = {
            "data": dataset.about,
            "vocabulary": dataset.concepts("train"),
            "styles": list(dict.fromkeys(item.style for item in dataset.items)),
        }

    def __len__(self) -> int:
        return len(self.latents)

    def tokens(self, step: int) -> tuple[Tensor, Tensor, None]:
        rows = epoch_order(len(self), self.batch, step, self.seed)
        return rows, self.latents[rows[self.share.part(len(rows))]], None

    def prepare(self, step: int) -> None:
        """Nothing is to be done ahead: all tokens are known."""

    def example(self, row: int) -> tuple[np.ndarray, str]:
        item = self.dataset.items[self.rows[row]]
        return self.dataset.images[self.rows[row]], item.captions[0]


@dataclass(frozen=True)
class SceneBatches(TorchDataset):
    """Training batches as a map-style torch dataset; loader processes compose them ahead of time.

    Element `step` is the rows (B,), and of a share of them the images (B', SIZE, SIZE, 3 or 4) uint8 and cell classes
    (B', N, 2) of that step.

    Attributes:
        breadth: share of single things, for an AtlasBank.
        share: of the rows, those that are composed.
    """

    bank: SceneBank
    batch: int
    seed: int
    grid: int
    breadth: float = 0.0
    share: Share = WHOLE

    def rows(self, step: int) -> Tensor:
        """The (batch,) rows of a step."""
        if isinstance(self.bank, AtlasBank):
            return mixed_order(self.bank.scenes, len(self.bank), self.breadth, self.batch, step, self.seed)
        return epoch_order(len(self.bank), self.batch, step, self.seed)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = self.rows(step)
        scenes, images = self.bank.scenes_and_images(rows[self.share.part(len(rows))].tolist(), visit=step)
        return rows, torch.from_numpy(images), torch.from_numpy(cell_classes(scenes, self.grid))


class SceneFeed:
    """Scenes, composed on the CPU by `loaders` processes (0: by this one, between steps) and encoded on `device`."""

    def __init__(self, scenes: SceneBank, tokenizer: AnyTokenizer, encoder: TextEncoder, cache: Path,
                 batch: int, seed: int, loaders: int, device: torch.device, breadth: float = 0.0,
                 share: Share = WHOLE):  # fmt: skip
        self.scenes, self.loaders, self.device = scenes, loaders, device
        self.tokenizer = tokenizer.to(device)
        self.batches = SceneBatches(scenes, batch, seed, SIZE // tokenizer.config.stride, breadth, share)
        self.captions = build_caption_cache(encoder, [(caption,) for caption in scenes.captions], cache).to(device)
        self.about = {
            "data": {key: value for key, value in scenes.sprites.about.items() if key not in ("portraits", "tags")},
            **known_words(scenes),
            "hints": keyword_hints(keywords(scenes), encoder),
        }
        self._next_step = -1
        self._batches: Iterator[tuple[Tensor, Tensor, Tensor]] = iter(())

    def __len__(self) -> int:
        return len(self.scenes)

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if step != self._next_step:  # the first step of this process
            self._batches = self._load_from(step)
        self._next_step = step + 1
        rows, images, cells = next(self._batches)
        return rows, self.encode(images), cells

    def prepare(self, step: int) -> None:
        """Nothing is to be done here: the loaders work ahead."""

    def encode(self, images: Tensor) -> Tensor:
        """(B', SIZE, SIZE, 3 or 4) uint8 images -> (B', N, C) tokens, or (B', N) int64 if discrete."""
        with torch.no_grad(), autocast(self.device):
            tokens = encode_tokens(self.tokenizer, to_pixels(images.to(self.device, non_blocking=True)))
        return tokens.float() if tokens.is_floating_point() else tokens

    def _load_from(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches from `step` on without end: the training loop stops by its own clock."""
        ahead: dict[str, Any] = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if self.loaders else {}
        steps = range(step, step + 10_000_000)
        return iter(DataLoader(self.batches, sampler=steps, batch_size=None, num_workers=self.loaders, **ahead))

    def example(self, row: int) -> tuple[np.ndarray, str]:
        return self.scenes.image(row, visit=0), self.scenes.captions[row]
