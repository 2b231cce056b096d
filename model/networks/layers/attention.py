"""Scaled dot-product attention, and positions on a grid: rotary and sinusoidal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# In training on a CPU, below this many queries, three plain operations beat torch's fused attention and its backward
# pass (docs/log.md). In inference, and on a GPU, the fused one always wins; it also keeps scores and sums in float32.
_PLAIN_IN_TRAINING_BELOW = 512


def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v.

    Args:
        q: (B, H, Nq, d). k, v: (B, H, Nk, d).
        key_mask: (B, Nk) bool, True where a key may be attended to. At least one key of each row must be True.
        causal: query i sees keys 0 to i only; instead of a mask.
    Returns:
        (B, H, Nq, d)
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, Nk)
    if q.device.type != "cpu" or not q.requires_grad or q.shape[2] >= _PLAIN_IN_TRAINING_BELOW:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, Nq, Nk)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def grid_rotation(grid: int, head_dim: int, base: float = 20.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines that rotate half of each head's channels by row and half by column.

    Axial rotary embedding: RoFormer (arXiv 2104.09864, section 3.2) per axis. The base is small because the
    grid is: the slowest pair turns by about one radian across an 8×8 grid.

    Returns:
        cos, sin: (N, d/2) float32 each.
    """
    quarter = head_dim // 4
    speed = base ** -(torch.arange(quarter) / quarter)  # (d/4,)
    place = torch.arange(grid).float()
    rows = place[:, None, None] * speed  # (g, 1, d/4)
    cols = place[None, :, None] * speed  # (1, g, d/4)
    angle = torch.cat([rows.expand(grid, grid, -1), cols.expand(grid, grid, -1)], -1).flatten(0, 1)  # (N, d/2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the channel pairs (i, i + d/2) of x (B, H, N, d) by the angles of `grid_rotation`."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def sincos_table(grid: int, width: int, amplitude: float) -> Tensor:
    """(N, D) sines and cosines of row and column: initial values of learned positions.

    At amplitude 0.7 a position is about as large as a token. Drawn from N(0, 0.02) it would be 30 times smaller, and
    the model would first have to learn where its neighbours are.
    """
    quarter = width // 4
    speed = 100.0 ** -(torch.arange(quarter) / quarter)
    angle = torch.arange(grid).float()[:, None] * speed  # (g, D/4)
    wave = torch.cat([angle.sin(), angle.cos()], -1)  # (g, D/2)
    rows = wave[:, None].expand(grid, grid, -1)
    cols = wave[None, :].expand(grid, grid, -1)
    return amplitude * torch.cat([rows, cols], -1).flatten(0, 1)
