"""NOVA (arXiv 2412.14169) for single images: MAR's masked decoding behind an encoder of text, with post-norm blocks.

    context   text states and a grid of start tokens, a quarter of the image's -> 16 blocks -> context tokens
    first     context and known tokens                                         -> half of 32 blocks
    second    context and all positions, a mask token where nothing is known   -> the other half -> z per position

The context depends on the prompt only, so it is the condition. All positions are computed sines; attention has no mask
but that of padding. The head is the diffusion head with `post_norm_head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import NovaConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.layers.blocks import PostNormBlock
from model.networks.layers.packing import pack_known, unpack_known

TIME_FEATURES = 256  # of a video's frame; an image is the frame at time 0


@dataclass
class NovaContext:
    """The condition of B prompts."""

    context: Tensor  # (B, N/4, D)
    read: tuple[int, ...]  # text tokens of each prompt

    def __len__(self) -> int:
        return len(self.context)

    @property
    def tokens(self) -> int:
        return sum(self.read)

    @property
    def length(self) -> int:
        return 0

    def padded(self, length: int) -> NovaContext:
        return self

    def __getitem__(self, rows: slice) -> NovaContext:
        return NovaContext(self.context[rows], self.read[rows])

    def tensors(self) -> list[Tensor]:
        """Every tensor; B first."""
        return [self.context]

    @staticmethod
    def stack(parts: Sequence[NovaContext]) -> NovaContext:
        """Concatenate contexts along B."""
        return NovaContext(torch.cat([part.context for part in parts]), tuple(n for part in parts for n in part.read))


class NovaBackbone(nn.Module):
    """Known tokens and a prompt's context in, one conditioning vector z per position out."""

    packs_known = True  # the first half sees known tokens only, so its length depends on their number
    # NOVA's blocks have no fused form; inference/precision.py sets the dtype for those that do.
    fused: torch.dtype | None = None

    context_positions: Tensor
    positions: Tensor

    def __init__(self, config: NovaConfig):
        super().__init__()
        self.config = config
        width = config.width

        def stack(depth: int) -> nn.ModuleList:
            return nn.ModuleList(PostNormBlock(width, config.heads, config.mlp_ratio) for _ in range(depth))

        self.text_fill = nn.Parameter(0.02 * torch.randn(config.text.max_tokens, config.text.dim))
        self.text_in, self.text_norm = nn.Linear(config.text.dim, width), nn.LayerNorm(width)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.time_norm = nn.LayerNorm(width)
        self.start_token = nn.Parameter(0.02 * torch.randn(width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.context, self.context_norm = stack(config.context_depth), nn.LayerNorm(width)
        self.token_in = nn.Linear(config.channels, width)
        self.first, self.second = stack(config.depth // 2), stack(config.depth - config.depth // 2)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("context_positions", grid_sines(config.grid // 2, width), persistent=False)
        self.register_buffer("positions", grid_sines(config.grid, width), persistent=False)

    def encode_text(self, states: Tensor) -> NovaContext:
        """The context of one prompt.

        Args:
            states: (1, L, E) of its L tokens; none for the unconditional branch. A learned table stands for the
                tokens from L on.
        """
        count = states.shape[1]
        text = self.text_norm(self.text_in(torch.cat([states, self.text_fill[None, count:]], 1)).float())
        frame = self.text_fill.new_tensor([0.0, 1.0]).repeat_interleave(TIME_FEATURES // 2)  # sin 0, cos 0
        time = frame[None]
        for layer in self.time:
            time = layer(time).float()  # a packed layer returns bfloat16
        time = self.time_norm(time)  # (1, D)
        start = self.start_token + time + self.context_positions  # (N/4, D)
        x = torch.cat([text, start[None]], 1)
        for block in self.context:
            x = block(x, None)
        return NovaContext(self.context_norm(x[:, text.shape[1] :]), (count,))

    def forward(self, tokens: Tensor, known: Tensor, condition: NovaContext, most_known: int | None = None) -> Tensor:
        """One pass through both halves.

        Args:
            tokens: (B, N, C); values at unknown positions are ignored.
            known: (B, N) bool, True where a token is decided. Rows may differ in their number.
            condition: the rows' prompts.
            most_known: an upper bound on the known tokens of any row, as in networks/mar.py.
        Returns:
            z: (B, N, D)
        """
        context = condition.context  # (B, N/4, D)
        room = context.shape[1]
        x = torch.cat([context, self.token_in(tokens).float() + self.positions], 1)  # (B, P, D) with P = N/4 + N
        present = torch.cat([known.new_ones(len(known), room), known], 1)  # (B, P)
        x, place, real = pack_known(x, present, None if most_known is None else room + most_known)
        for block in self.first:
            x = block(x, real)
        filling = F.pad(self.mask_token + self.positions, (0, 0, room, 0))  # (P, D)
        x = unpack_known(x, place, present, filling)
        for block in self.second:
            x = block(x, None)
        z: Tensor = self.norm(x[:, room:])
        return z


def grid_sines(grid: int, width: int) -> Tensor:
    """(grid², D): sine and cosine of the column, then of the row, with D/4 frequencies each."""
    speed = 1 / 10000 ** (torch.arange(width // 4).float() / (width // 4))
    angle = torch.arange(grid).float()[:, None] * speed  # (g, D/4)
    wave = torch.cat([angle.sin(), angle.cos()], -1)  # (g, D/2)
    columns, rows = wave[None].expand(grid, -1, -1), wave[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1)


class Nova(AutoregressiveModel):
    """NOVA's text-to-image models."""

    backbone: NovaBackbone
    config: NovaConfig

    def __init__(self, config: NovaConfig):
        super().__init__(config, NovaBackbone(config))
