"""The feed of scenes that a GPU composes and encodes by itself: the host sends it the numbers of the rows alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fluid_kernels.transfers import send
from model.data.scenes.bank import SceneBank
from model.networks.factory import AnyTokenizer
from model.networks.text_encoder import TextEncoder
from model.process_group import Share
from model.training.composer.composer import Composer, build_tables
from model.training.feeds import WHOLE, SceneFeed
from model.training.trainer import step_generator

LAYOUTS = 4  # added to the seed: the generator of layouts, beside those of orders and of steps


class ComposedFeed(SceneFeed):
    """As SceneFeed, from the same rows at each step, but other layouts of the same distribution."""

    def __init__(self, scenes: SceneBank, tokenizer: AnyTokenizer, encoder: TextEncoder, cache: Path,
                 batch: int, seed: int, device: torch.device, breadth: float = 0.0, share: Share = WHOLE,
                 fuse: bool = False):  # fmt: skip
        """fuse: as `Composer` has it."""
        super().__init__(scenes, tokenizer, encoder, cache, batch, seed, 0, device, breadth, share)
        self.composer = Composer(build_tables(scenes, self.batches.grid), device, fuse)
        self._ready: tuple[int, tuple[Tensor, Tensor, Tensor]] | None = None

    def tokens(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        if self._ready is None or self._ready[0] != step:
            self.prepare(step)
        assert self._ready is not None
        return self._ready[1]

    def prepare(self, step: int) -> None:
        rows = self.batches.rows(step)
        chances = torch.rand(len(rows), generator=step_generator(self.batches.seed + LAYOUTS, step), dtype=torch.double)
        part = self.batches.share.part(len(rows))
        images, cells = self.composer.compose(send(rows[part], self.device), send(chances[part], self.device))
        self._ready = step, (rows, self.encode(images if self.scenes.alpha else images[..., :3]), cells)
