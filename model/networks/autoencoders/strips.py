"""Decode with diffusers' AutoencoderKL in horizontal strips: the same image, with half of the memory.

Every convolution runs over a few rows at a time, with one row of the neighbours on each side; group norms take their
mean and variance from the whole image, as the module does. Independent tiles, diffusers' own way, need less memory
still, but normalise each tile by itself, which changes its colours, and compute their overlaps twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def decode_in_strips(vae: Any, latents: Tensor, height: int) -> Tensor:
    """(B, c, h, w) latents -> (B, 3, H, W), up to rounding what `vae.decode` returns.

    Args:
        height: rows of latents in a strip; at finer levels it has as many more rows as the image.
    """
    decoder = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for level in decoder.up_blocks:
        for block in level.resnets:
            x = _residual(block, x, height)
        for layer in level.upsamplers or ():
            height *= 2
            x = _convolve(layer.conv, x, height, scale=2)
    return _convolve(decoder.conv_out, x, height, decoder.conv_norm_out)


def _residual(block: Any, x: Tensor, height: int) -> Tensor:
    h = _convolve(block.conv1, x, height, block.norm1)
    h = _convolve(block.conv2, h, height, block.norm2)
    if block.conv_shortcut is None:
        return h.add_(x)
    for top in range(0, x.shape[2], height):
        h[:, :, top : top + height] += block.conv_shortcut(x[:, :, top : top + height])
    return h


def _convolve(conv: nn.Conv2d, x: Tensor, height: int, norm: nn.GroupNorm | None = None, scale: int = 1) -> Tensor:
    """3 × 3 convolution of x (B, C, H, W), behind a group norm and SiLU or behind an upsampling if they are given."""
    rows = x.shape[2] * scale
    out = x.new_empty(len(x), conv.out_channels, rows, x.shape[3] * scale)
    affine = None if norm is None else _affine(norm, x)
    for top in range(0, rows, height):
        bottom = min(top + height, rows)
        first, last = max(top - 1, 0), min(bottom + 1, rows)  # rows that are read, after upsampling
        part = x[:, :, first // scale : -(-last // scale)]
        if affine is not None:
            part = F.silu(torch.addcmul(affine[1], part, affine[0]), inplace=True)
        if scale > 1:
            skip = first % scale
            part = F.interpolate(part, scale_factor=float(scale))[:, :, skip : skip + last - first]
        part = F.pad(part, (1, 1, int(top == 0), int(bottom == rows)))
        out[:, :, top:bottom] = F.conv2d(part, conv.weight, conv.bias)
    return out


def _affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, 1, 1) factor and summand that normalise x by the statistics of the whole image."""
    groups = x.unflatten(1, (norm.num_groups, -1))  # (B, G, C/G, H, W)
    variance, mean = torch.var_mean(groups, (2, 3, 4), correction=0)  # (B, G)
    scale = (variance + norm.eps).rsqrt()
    each = norm.num_channels // norm.num_groups
    factor = scale.repeat_interleave(each, 1) * norm.weight
    summand = norm.bias - mean.repeat_interleave(each, 1) * factor
    return factor[:, :, None, None], summand[:, :, None, None]
