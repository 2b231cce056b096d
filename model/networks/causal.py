"""The causal backbone: position by position in raster order, each from the tokens before it.

As GPT, and as the raster-order systems of Fluid (arXiv 2410.13863): the input of position i is token i - 1, or a
learned start token, so that z_i depends on tokens 0 to i - 1 and on the text only. Everything else is transformer.py's.
Decoding keeps the keys and values of past positions: a step is one position of every row.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fluid_kernels.ops.linear import in_one_order
from model.config import FluidConfig, ModelConfig
from model.discrete_config import PrefixConfig
from model.networks.layers.key_values import KeyValues
from model.networks.layers.residual import residual
from model.networks.transformer import TextBackbone, TextContext


class Stepwise(Protocol):
    """What decoding needs of a causal backbone; `text` is the condition of its family."""

    def prefill(self, tokens: Tensor, rows: Tensor, text: Any, cache: KeyValues) -> None: ...

    def step(
        self, tokens: Tensor, rows: Tensor, positions: Tensor, text: Any, cache: KeyValues, longest: int
    ) -> Tensor: ...


class CausalBackbone(TextBackbone):
    """Tokens in raster order and text in, one conditioning vector z per position out."""

    packs_known = True  # a step reads as many keys as there are positions behind it

    def __init__(self, config: FluidConfig):
        super().__init__(config)
        self.start_token = nn.Parameter(0.02 * torch.randn(config.width))

    def forward(self, tokens: Tensor, known: Tensor | None, text: TextContext, most_known: int | None = None) -> Tensor:
        """All positions at once: training, and the definition of `step`.

        Args:
            tokens: (B, N, C), or (B, N) if discrete.
            known, most_known: ignored. z is what `step` gives at every position up to the first unknown one.
            text: the prompts' keys and values.
        Returns:
            z: (B, N, D)
        """
        return self._all(tokens, text, None)

    def prefill(self, tokens: Tensor, rows: Tensor, text: TextContext, cache: KeyValues) -> None:
        """Fill the cache of B rows for the n positions 0 to n - 1.

        Args:
            tokens: (B, n, C) or (B, n); the last is not read, since it is position n's input.
            rows: (B,) int64, the rows' places in the cache.
        """
        self._all(tokens, text, (cache, rows))

    def _all(self, tokens: Tensor, text: TextContext, filled: tuple[KeyValues, Tensor] | None) -> Tensor:
        """(B, n, …) -> z (B, n, D)."""
        batch, count = tokens.shape[:2]
        start = self.start_token.expand(batch, 1, -1)
        x = torch.cat([start.to(self.pos.dtype), self.token_in(tokens[:, :-1])], 1) + self.pos[:count]  # (B, n, D)
        rotation = None if self.rotation is None else (self.rotation[0][:count], self.rotation[1][:count])
        stream = residual(x, self.fused)
        for i, (block, k, v) in enumerate(zip(self.blocks, text.keys, text.values, strict=True)):
            past = None if filled is None else filled[0].prefix(i, filled[1])
            stream = block(stream, k, v, text.mask, rotation, True, past)
        return stream.normed(self.norm, last=True) + self.pos_out[:count]

    def step(
        self, tokens: Tensor, rows: Tensor, positions: Tensor, text: TextContext, cache: KeyValues, longest: int
    ) -> Tensor:
        """One position of each of B rows, which may all be at different ones.

        Args:
            tokens: (R, N, C) or (R, N), all images being decoded; row r of the cache belongs to image r modulo R.
            rows: (B,) int64, the rows' places in the cache; positions before theirs are filled.
            positions: (B,) int64, 0 to longest - 1.
            longest: number of cached positions that are read; all shapes follow from it and from B.
        Returns:
            z: (B, 1, D)
        """
        previous = tokens[rows % len(tokens), (positions - 1).clamp_min(0)]  # (B, C) or (B,)
        return self.advance(previous, rows, positions, text, cache, longest)

    def advance(
        self, previous: Tensor, rows: Tensor, positions: Tensor, text: TextContext, cache: KeyValues, longest: int
    ) -> Tensor:
        """The same, given the tokens before the positions, (B, C) or (B,)."""
        x = torch.where((positions == 0)[:, None], self.start_token, in_one_order(self.token_in, previous))  # (B, D)
        x = (x + self.pos[positions])[:, None]  # (B, 1, D)
        rotation = None
        if self.rotation is not None:
            cos, sin = (table[positions][:, None, None] for table in self.rotation)  # (B, 1, 1, d/2)
            rotation = (cos, sin)
        stream = residual(x, self.fused)
        for i, (block, k, v) in enumerate(zip(self.blocks, text.keys, text.values, strict=True)):
            stream = block(stream, k, v, text.mask, rotation, False, cache.next(i, rows, positions, longest))
        return stream.normed(self.norm, last=True) + self.pos_out[positions][:, None]


def make_cache(
    config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype, shards: int = 1
) -> KeyValues | None:
    """Keys and values of this many rows, for a causal backbone or one of its shards; None: it needs none."""
    if not isinstance(config, FluidConfig | PrefixConfig) or not config.causal:
        return None
    return KeyValues(config.depth, rows, config.heads // shards, config.tokens, config.head_dim, device, dtype)
