"""Tokens that an image starts from: the part that an edit leaves alone, or that a variation keeps.

Random order gives both for free: a model trained to continue from any part of an image does not depend on having
generated that part itself. So these tokens are simply known before the first step, and the order is walked over the
rest. Raster order walks over all positions and forces the given tokens: a token depends on the given ones before it
only, so edits do not look ahead to what follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.inference.requests import EngineError
from model.networks.tokenizer import DiscreteTokenizer, ImageTokenizer, encode_tokens, on_white, to_pixels


@dataclass(frozen=True)
class KnownTokens:
    """Tokens that are decided from the start. Values where `kept` is false are never read."""

    tokens: Tensor  # (N, C) float32, or (N,) int64 if discrete; for generate (B, N, C) or (B, N)
    kept: Tensor  # (N,) bool, or (B, N)


def undecided(config: ModelConfig, rows: int, device: torch.device) -> Tensor:
    """Tokens of images of which nothing is decided: zeros (R, N, C), or -1 (R, N) int64 if discrete."""
    if config.categorical:
        return torch.full((rows, config.tokens), -1, device=device)
    return torch.zeros(rows, config.tokens, config.channels, device=device)


def masked_tokens(start: KnownTokens, rest: Tensor) -> Tensor:
    """The kept tokens of `start`, and those of `rest` elsewhere, of the same shape as both."""
    kept = start.kept if start.tokens.ndim == start.kept.ndim else start.kept[..., None]
    return torch.where(kept, start.tokens, rest)


def encode_pixels(
    pixels: bytes, tokenizer: ImageTokenizer | DiscreteTokenizer, config: ModelConfig, device: torch.device
) -> Tensor:
    """RGB or RGBA bytes (height · width · 3 or 4, row by row) -> (N, C) or (N,). One image at a time, so that its
    tokens do not depend on the rest of the batch.

    Raises:
        EngineError: the bytes are not an image of the model's size.
    """
    side = config.image_size
    colours = len(pixels) // (side * side)
    if len(pixels) != side * side * colours or colours not in (3, config.image_channels):
        raise EngineError(f"the image to start from has {len(pixels)} bytes, not {side} x {side} x 3")
    image = to_pixels(torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, colours))
    return encode_tokens(tokenizer, (on_white(image) if colours == 4 else image).to(device))[0]


def kept_mask(kept: bytes | int, order: Tensor) -> Tensor:
    """(N,) bool, True for the tokens that an image starts from.

    Args:
        kept: N bytes, nonzero where a token is kept; or how many to keep: then those that `order` decides first, so
            that the image continues as if it had been generated that far.
        order: (N,) the row's whole order; its last entries are decided first.
    Raises:
        EngineError: nothing is left to generate, or the number of bytes is not N.
    """
    total = len(order)
    if isinstance(kept, int):
        if not 0 <= kept < total:
            raise EngineError(f"{kept} tokens are to be kept; this model has {total}, so 0 to {total - 1}")
        mask = torch.zeros(total, dtype=torch.bool, device=order.device)
        mask[order[total - kept :]] = True
        return mask
    if len(kept) != total:
        raise EngineError(f"the mask of kept tokens has {len(kept)} entries; this model has {total} tokens")
    mask = torch.tensor(list(kept), device=order.device).bool()
    if mask.all():
        raise EngineError("every token is kept, so there is nothing to generate")
    return mask
