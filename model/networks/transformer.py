"""The Fluid backbone: one stack of bidirectional blocks over known and mask tokens, with text by cross-attention.

networks/causal.py has the causal one, of the same blocks.

Fluid (arXiv 2410.13863) Fig. 3: self-attention -> cross-attention -> MLP in every block; unknown positions hold a
learned mask token; no encoder/decoder split. Not in the paper and therefore ours: learned absolute positions, pre-norm,
GELU, MLP ratio 4 (MAR's habits), and optional rotary positions (config.FluidConfig.positions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import FluidConfig
from model.networks.layers.attention import grid_rotation, rotate, sincos_table
from model.networks.layers.blocks import LN_EPS, Attention, Mlp, SelfBlock, TokenEmbedding
from model.networks.layers.key_values import BlockKeyValues
from model.networks.layers.residual import Residual, residual

# The last layer of each branch of a block, whose output is added to the residual stream
RESIDUAL_OUTPUTS = ("self_attn.out", "cross_attn.out", "mlp.2")


@dataclass
class TextContext:
    """The condition of B prompts: every block's cross-attention keys and values."""

    keys: list[Tensor]  # per block (B, H, L, d)
    values: list[Tensor]  # per block (B, H, L, d)
    mask: Tensor  # (B, L) bool, True on real text tokens

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())

    @property
    def length(self) -> int:
        return self.mask.shape[1]

    def padded(self, length: int) -> TextContext:
        """Room for `length` tokens: keys and values of zero, which the mask excludes."""
        more = length - self.length
        if more == 0:
            return self
        keys, values = ([F.pad(t, (0, 0, 0, more)) for t in tensors] for tensors in (self.keys, self.values))
        return TextContext(keys, values, F.pad(self.mask, (0, more)))

    def __getitem__(self, rows: slice) -> TextContext:
        return TextContext([k[rows] for k in self.keys], [v[rows] for v in self.values], self.mask[rows])

    def tensors(self) -> list[Tensor]:
        """Every tensor, in a fixed order; B first."""
        return [*self.keys, *self.values, self.mask]

    @staticmethod
    def stack(parts: Sequence[TextContext]) -> TextContext:
        """Concatenate contexts along B, with room for the longest."""
        longest = max(part.length for part in parts)
        parts = [part.padded(longest) for part in parts]
        return TextContext(
            [torch.cat(blocks) for blocks in zip(*(p.keys for p in parts), strict=True)],
            [torch.cat(blocks) for blocks in zip(*(p.values for p in parts), strict=True)],
            torch.cat([p.mask for p in parts]),
        )


class Aligner(nn.Module):
    """Trainable layers between the frozen text encoder and the cross-attention."""

    def __init__(self, config: FluidConfig):
        super().__init__()
        width = config.aligner_width or config.width
        self.norm_in, self.proj = nn.LayerNorm(config.text.dim, LN_EPS), nn.Linear(config.text.dim, width)
        self.pos = nn.Parameter(0.02 * torch.randn(config.text.max_tokens, width))
        self.blocks = nn.ModuleList(
            SelfBlock(width, config.aligner_heads, config.mlp_ratio) for _ in range(config.aligner_depth)
        )
        self.norm = nn.LayerNorm(width, LN_EPS)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        x = self.proj(self.norm_in(hidden)) + self.pos[: hidden.shape[1]]  # (B, L, E) -> (B, L, D')
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # (B, L, D')


class Block(nn.Module):
    """x += self(LN x);  x += cross(LN x, text);  x += mlp(LN x)."""

    def __init__(self, config: FluidConfig):
        super().__init__()
        width = config.width
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, LN_EPS) for _ in range(3))
        self.self_attn = Attention(width, config.heads, width)
        self.cross_attn = Attention(width, config.heads, config.aligner_width or width)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(
        self,
        stream: Residual,
        text_k: Tensor,
        text_v: Tensor,
        text_mask: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        causal: bool = False,
        past: BlockKeyValues | None = None,
    ) -> Residual:
        """Add to the stream and return it.

        Args:
            causal: position i attends to positions 0 to i. past: keep keys and values there, and attend to those.
        """
        q, k, v = self.self_attn.project(stream.normed(self.norm1))  # (B, H, N, d)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        seen = None
        if past is not None:
            k, v, seen = past.extend(k, v)
        stream.add(self.self_attn.attend(q.to(k.dtype), k, v, seen, causal))
        q = self.cross_attn.split(self.cross_attn.q(stream.normed(self.norm2)))
        stream.add(self.cross_attn.attend(q, text_k, text_v, text_mask))
        stream.add(self.mlp(stream.normed(self.norm3)))
        return stream


class TextBackbone(nn.Module):
    """What both backbones of `fluid` share: text aligner, token input, positions and blocks."""

    packs_known = False  # no shape depends on the number of known tokens
    shards = 1  # devices that it is split over: model/inference/devices
    fused: torch.dtype | None = None  # of products, where sums and norms are one kernel: model/inference/precision.py

    def __init__(self, config: FluidConfig):
        super().__init__()
        self.config = config
        width, sincos = config.width, config.positions == "sincos_rope"
        self.aligner = Aligner(config)
        # Continuous tokens are projected, discrete ones looked up.
        self.token_in = (
            TokenEmbedding(config.codebook, width) if config.categorical else nn.Linear(config.channels, width)
        )
        table = sincos_table(config.grid, width, 0.7) if sincos else 0.02 * torch.randn(config.tokens, width)
        self.pos = nn.Parameter(table)
        # A second table tells the head where its token sits, as MAR's diffusion_pos_embed_learned does.
        self.pos_out = nn.Parameter(table.clone())
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, LN_EPS)
        self.rotary = sincos
        if sincos:
            cos, sin = grid_rotation(config.grid, config.head_dim)
            self.register_buffer("rope_cos", cos, persistent=False)
            self.register_buffer("rope_sin", sin, persistent=False)

    @property
    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """(N, d/2) cosines and sines of every position, if positions are rotary."""
        return (self.rope_cos, self.rope_sin) if self.rotary else None  # type: ignore[return-value]

    def encode_text(self, hidden: Tensor, mask: Tensor) -> TextContext:
        """(B, L, E) text encoder states and (B, L) mask -> keys and values of every block."""
        aligned = self.aligner(hidden, mask)  # (B, L, D')
        pairs = [block.cross_attn.keys_values(aligned) for block in self.blocks if isinstance(block, Block)]
        return TextContext([k for k, _ in pairs], [v for _, v in pairs], mask)


class Backbone(TextBackbone):
    """Known tokens and text in, one conditioning vector z per position out."""

    def __init__(self, config: FluidConfig):
        super().__init__(config)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.width))

    def forward(self, tokens: Tensor, known: Tensor, text: TextContext, most_known: int | None = None) -> Tensor:
        """One bidirectional pass.

        Args:
            tokens: (B, N, C), or (B, N) if discrete; values at unknown positions are ignored.
            known: (B, N) bool, True where a token is decided. Rows may differ in their number.
            text: the prompts' keys and values.
            most_known: ignored; for families that pack the known tokens.
        Returns:
            z: (B, N, D)
        """
        x = torch.where(known[..., None], self.token_in(tokens), self.mask_token)  # (B, N, D)
        x = x + self.pos
        stream = residual(x, self.fused)
        for block, k, v in zip(self.blocks, text.keys, text.values, strict=True):
            stream = block(stream, k, v, text.mask, self.rotation)
        return stream.normed(self.norm, last=True) + self.pos_out


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters())


def init_weights(module: nn.Module) -> None:
    """Initialise as in MAR and DiT: Xavier-uniform matrices, zero biases. Output projections start at half size."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if name.endswith(RESIDUAL_OUTPUTS):
                part.weight.data.mul_(0.5)
