"""Losses of an image tokenizer: pixels, image gradients, and what keeps latents in bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from model.networks.tokenizer import PcaSkipTokenizer
from model.networks.vq_tokenizer import VqTokenizer

LATENT_NOISE = 0.1  # standard deviation; latents have 1


def reconstruction_loss(
    tokenizer: PcaSkipTokenizer, pixels: Tensor, noise: Tensor, noise_max: float = 0.0, seam_weight: float = 0.0
) -> Tensor:
    """`image_loss` of images whose latents had noise, and 1e-4·|z|².

    Args:
        pixels: (B, 3 or 4, H, W) in [-1, 1].
        noise: (B, N, C), standard normal.
        noise_max: largest standard deviation of the noise of every second image, relative to that of the latents, which
            therefore cannot grow to outshout it; 0: LATENT_NOISE for all, absolute.
    """
    z = tokenizer.encode(pixels)
    sigma: float | Tensor = LATENT_NOISE
    if noise_max:
        spread = torch.arange(1, len(pixels) + 1, 2) / len(pixels)  # even levels: their mean is the same in every batch
        levels = torch.full((len(pixels),), LATENT_NOISE)
        levels[1::2] = LATENT_NOISE + (noise_max - LATENT_NOISE) * spread[: len(levels[1::2])]
        sigma = levels[:, None, None].to(z) * z.detach().std()
    out = tokenizer.decode(z + sigma * noise)
    return image_loss(out, pixels, tokenizer.config.stride, seam_weight) + 1e-4 * z.float().square().mean()


def code_loss(tokenizer: VqTokenizer, pixels: Tensor, seam_weight: float = 0.0) -> Tensor:
    """`image_loss` of images from their codes, which have no noise, and the distance of the latents to them."""
    vectors, _, commitment = tokenizer.quantize(tokenizer.autoencoder.encode(pixels))
    out = tokenizer.autoencoder.decode(vectors)
    return image_loss(out, pixels, tokenizer.config.stride, seam_weight) + commitment


def image_loss(out: Tensor, pixels: Tensor, stride: int, seam_weight: float = 0.0) -> Tensor:
    """L1 + 2·L2 + 0.3·L1 of image gradients + seam_weight·L1 of the gradients across token borders."""
    error = out.float() - pixels
    down, right = error.diff(dim=2).abs(), error.diff(dim=3).abs()
    loss = error.abs().mean() + 2 * error.square().mean() + 0.3 * (down.mean() + right.mean())
    if seam_weight:
        across = down[:, :, stride - 1 :: stride].mean() + right[:, :, :, stride - 1 :: stride].mean()
        loss = loss + seam_weight * across
    return loss
