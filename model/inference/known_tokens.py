"""Tokens that a picture starts from: what an edit leaves alone, or what a variation keeps.

Random order gives both for free: a model that was trained to go on from any part of a picture does not ask whether it
drew that part itself. So given tokens are simply known before the first step, and the order is walked over the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.inference.requests import EngineError
from model.networks.tokenizer import ImageTokenizer, to_pixels


@dataclass(frozen=True)
class Given:
    """Tokens that are known from the start. Where `stays` is false their value is not looked at."""

    tokens: Tensor  # (N, C), or (B, N, C) for generate
    stays: Tensor  # (N,) bool, or (B, N)


def encode_pixels(pixels: bytes, tokenizer: ImageTokenizer, config: ModelConfig, device: torch.device) -> Tensor:
    """RGB bytes -> (N, C). One picture at a time, so that its tokens do not depend on company.

    Raises:
        EngineError: they are not a picture of the model's size.
    """
    side = config.image_size
    if len(pixels) != side * side * 3:
        raise EngineError(f"the picture to start from has {len(pixels)} bytes, not {side} x {side} x 3")
    image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, side, side, 3)
    return tokenizer.encode(to_pixels(image).to(device))[0]


def staying(stays: bytes | int, order: Tensor) -> Tensor:
    """(N,) bool of the tokens that stay. A number keeps those that `order` (N,) decides first, which are its last:
    then the picture goes on as if it had been drawn that far.

    Raises:
        EngineError: nothing is left to draw, or it does not speak of this many tokens.
    """
    total = len(order)
    if isinstance(stays, int):
        if not 0 <= stays < total:
            raise EngineError(f"{stays} tokens are to stay; 0 to {total - 1} of this model's {total} can")
        mask = torch.zeros(total, dtype=torch.bool, device=order.device)
        mask[order[total - stays :]] = True
        return mask
    if len(stays) != total:
        raise EngineError(f"{len(stays)} tokens are marked as staying or not; this model has {total}")
    mask = torch.tensor(list(stays), device=order.device).bool()
    if mask.all():
        raise EngineError("every token stays, so there is nothing to draw")
    return mask
