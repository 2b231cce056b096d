"""Building blocks shared by all families: attention, MLP, and the plain pre-norm block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.networks.layers.attention import attention
from model.networks.layers.residual import PlainResidual, Residual

LN_EPS = 1e-6


class TokenEmbedding(nn.Module):
    """A vector for each of K discrete tokens. The categorical head uses the same table.

    Entries start as small as the weights of a layer; times √D they are about as large as positions.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(count, width))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., D). Negative ids, which stand for unknown tokens, read entry 0."""
        return F.embedding(ids.clamp_min(0), self.weight) * self.weight.shape[1] ** 0.5


class Attention(nn.Module):
    """Multi-head attention with separate projections for queries and for keys/values."""

    def __init__(self, width: int, heads: int, source_width: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(source_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.qkv: nn.Module | None = (
            None  # all three in one product, in place of q and kv: model/inference/precision.py
        )

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, D) -> (B, H, N, d)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the same (B, N, D): (B, H, N, d) each."""
        if self.qkv is None:
            return (self.split(self.q(x)), *self.keys_values(x))
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.split(q), self.split(k), self.split(v)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(source).chunk(2, -1)
        return self.split(k), self.split(v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, causal: bool = False) -> Tensor:
        h = attention(q, k, v, key_mask, causal)  # (B, H, N, d)
        return self.out(h.transpose(1, 2).flatten(2))  # (B, N, D)


class Mlp(nn.Sequential):
    """Linear, GELU, Linear.

    gelu: "tanh" for our own models (about half the time of the erf form on a CPU, at equal quality), or "none", the erf
    form, for weights that were trained with it.
    """

    def __init__(self, width: int, ratio: int, gelu: str = "tanh"):
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(approximate=gelu), nn.Linear(ratio * width, width))


class PostNormBlock(nn.Module):
    """x += LN attention(x);  x += LN mlp(x).  Layer of NOVA's encoders."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, width), Mlp(width, ratio, "none")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D), and (B, N) bool, True where a position may be attended to -> (B, N, D), float32."""
        x = x + self.norm1(self.attn.attend(*self.attn.project(x), mask).float())
        normed: Tensor = self.norm2(self.mlp(x).float())
        return x + normed


class SelfBlock(nn.Module):
    """x += attention(LN x);  x += mlp(LN x).  Layer of the text aligner and of MAR's encoder and decoder."""

    def __init__(self, width: int, heads: int, ratio: int, gelu: str = "tanh"):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, LN_EPS), nn.LayerNorm(width, LN_EPS)
        self.attn, self.mlp = Attention(width, heads, width), Mlp(width, ratio, gelu)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D), and (B, N) bool, True where a position may be attended to -> (B, N, D)."""
        stream = PlainResidual(x)
        self.advance(stream, mask)
        return stream.x

    def advance(self, stream: Residual, mask: Tensor | None) -> None:
        """The same on a residual stream."""
        stream.add(self.attn.attend(*self.attn.project(stream.normed(self.norm1)), mask))
        stream.add(self.mlp(stream.normed(self.norm2)))
