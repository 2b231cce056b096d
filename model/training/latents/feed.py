"""The feed of encoded images: rows are read from the file when a batch needs them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.config import ConfigError
from model.networks.factory import AnyTokenizer
from model.networks.text_encoder import TextEncoder
from model.networks.tokenizer import decode_tokens, to_uint8
from model.networks.tokenizer_folder import digest
from model.process_group import Share
from model.training.captions.caption_cache import build_caption_cache
from model.training.feeds import WHOLE, epoch_order
from model.training.latents.store import LatentCache


class LatentFeed:
    """Rows of a LatentCache, every one once per epoch; the images of sample sheets are decoded from it."""

    def __init__(self, cache: LatentCache, tokenizer: AnyTokenizer, encoder: TextEncoder, batch: int, seed: int,
                 share: Share = WHOLE):  # fmt: skip
        """
        Raises:
            ConfigError: another tokenizer encoded the cache.
        """
        if cache.about["tokenizer_sha256"] != digest(tokenizer):
            raise ConfigError(
                f"{cache.folder} was encoded by another tokenizer, {cache.about['tokenizer']}: train with that one, or "
                "encode the images again"
            )
        self.cache, self.tokenizer, self.batch, self.seed, self.share = cache, tokenizer, batch, seed, share
        self.captions = build_caption_cache(encoder, [(caption,) for caption in cache.captions], cache.folder)
        self.about = {"data": cache.about, "vocabulary": [], "styles": []}

    def __len__(self) -> int:
        return len(self.cache.captions)

    def _rows(self, rows: Tensor) -> Tensor:
        """(B,) rows -> (B, N, C) float32 tokens, or (B, N) int64."""
        found = torch.from_numpy(self.cache.latents[rows.numpy()])
        return found.float() if found.is_floating_point() else found.long()

    def tokens(self, step: int) -> tuple[Tensor, Tensor, None]:
        rows = epoch_order(len(self), self.batch, step, self.seed)
        return rows, self._rows(rows[self.share.part(len(rows))]), None

    def prepare(self, step: int) -> None:
        """Nothing is to be done ahead: all tokens are known."""

    def example(self, row: int) -> tuple[np.ndarray, str]:
        device = next(self.tokenizer.parameters()).device
        with torch.no_grad():
            pixels = decode_tokens(self.tokenizer, self._rows(torch.tensor([row])).to(device))
        return to_uint8(pixels[:, :3])[0].cpu().numpy(), self.cache.captions[row]
