"""The autoencoder of latent diffusion restated as functions over tensors with their official names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(widths: tuple[int, ...] = (32, 64), layers: int = 1, latent: int = 4, seed: int = 0) -> State:
    """A small complete checkpoint, with attention at the coarsest width. Widths are multiples of the 32 norm groups."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        scale = (into * size * size) ** -0.5
        state[f"{name}.weight"] = torch.randn(out, into, size, size, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name: str, size: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(size, generator=generator)

    def residual(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name: str, size: int) -> None:
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", size, size, 1)

    def middle(side: str) -> None:
        residual(f"{side}.mid.block_1", widths[-1], widths[-1])
        attention(f"{side}.mid.attn_1", widths[-1])
        residual(f"{side}.mid.block_2", widths[-1], widths[-1])

    conv("encoder.conv_in", widths[0], 3, 3)
    width = widths[0]
    for level, out in enumerate(widths):
        for i in range(layers):
            residual(f"encoder.down.{level}.block.{i}", width, out)
            width = out
            if level == len(widths) - 1:
                attention(f"encoder.down.{level}.attn.{i}", width)
        if level < len(widths) - 1:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle("encoder")
    norm("encoder.norm_out", widths[-1])
    conv("encoder.conv_out", 2 * latent, widths[-1], 3)
    conv("quant_conv", 2 * latent, 2 * latent, 1)
    conv("post_quant_conv", latent, latent, 1)
    conv("decoder.conv_in", widths[-1], latent, 3)
    middle("decoder")
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            residual(f"decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", widths[0])
    conv("decoder.conv_out", 3, widths[0], 3)
    return state


def _conv(state: State, name: str, x: Tensor, **more: int) -> Tensor:
    weight = state[f"{name}.weight"]
    padding = more.pop("padding", weight.shape[-1] // 2)
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=padding, **more)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _residual(state: State, name: str, x: Tensor) -> Tensor:
    h = _conv(state, f"{name}.conv1", F.silu(_norm(state, f"{name}.norm1", x)))
    h = _conv(state, f"{name}.conv2", F.silu(_norm(state, f"{name}.norm2", h)))
    return h + (_conv(state, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x)


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    h = _norm(state, f"{name}.norm", x)
    q, k, v = (_conv(state, f"{name}.{part}", h).flatten(2) for part in "qkv")  # (B, c, hw)
    weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), -1)  # (B, hw, hw)
    return x + _conv(state, f"{name}.proj_out", (v @ weights.transpose(1, 2)).view_as(x))


def _middle(state: State, side: str, x: Tensor) -> Tensor:
    x = _attention(state, f"{side}.mid.attn_1", _residual(state, f"{side}.mid.block_1", x))
    return _residual(state, f"{side}.mid.block_2", x)


def encode(state: State, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> the posterior's mean (B, c, H/s, W/s)."""
    x, level = _conv(state, "encoder.conv_in", pixels), 0
    while f"encoder.down.{level}.block.0.conv1.weight" in state:
        block = 0
        while f"encoder.down.{level}.block.{block}.conv1.weight" in state:
            x = _residual(state, f"encoder.down.{level}.block.{block}", x)
            if f"encoder.down.{level}.attn.{block}.q.weight" in state:
                x = _attention(state, f"encoder.down.{level}.attn.{block}", x)
            block += 1
        if f"encoder.down.{level}.downsample.conv.weight" in state:
            # padded at the right and at the bottom only
            x = _conv(state, f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), padding=0, stride=2)
        level += 1
    x = F.silu(_norm(state, "encoder.norm_out", _middle(state, "encoder", x)))
    return _conv(state, "quant_conv", _conv(state, "encoder.conv_out", x)).chunk(2, 1)[0]


def decode(state: State, z: Tensor) -> Tensor:
    """(B, c, h, w) latents as the encoder returns them -> (B, 3, H, W)."""
    x = _conv(state, "decoder.conv_in", _conv(state, "post_quant_conv", z))
    x = _middle(state, "decoder", x)
    level = max(int(key.split(".")[2]) for key in state if key.startswith("decoder.up."))
    while level >= 0:
        block = 0
        while f"decoder.up.{level}.block.{block}.conv1.weight" in state:
            x = _residual(state, f"decoder.up.{level}.block.{block}", x)
            block += 1
        if level:
            x = _conv(state, f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
        level -= 1
    return _conv(state, "decoder.conv_out", F.silu(_norm(state, "decoder.norm_out", x)))
