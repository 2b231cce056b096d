"""MAR (arXiv 2406.11838): the masked autoencoder that Fluid grew out of, conditioned on a class label.

Only the differences from networks/transformer.py are here. They follow section 3 of the paper, and the released code
for what the paper leaves out:

    encoder   64 copies of the class embedding, then the known tokens only         -> as many vectors
    decoder   the same 64, then all positions, a mask token where nothing is known -> z per position

Three learned tables of positions: one added before the encoder, one before the decoder, one to the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import MarConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.layers.blocks import LN_EPS, SelfBlock
from model.networks.layers.packing import pack_known, unpack_known
from model.networks.layers.residual import residual


@dataclass
class ClassContext:
    """The condition of B class labels."""

    embedding: Tensor  # (B, D)

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def tokens(self) -> int:
        return len(self)  # one for each label

    @property
    def length(self) -> int:
        return 0

    def padded(self, length: int) -> ClassContext:
        return self

    def __getitem__(self, rows: slice) -> ClassContext:
        return ClassContext(self.embedding[rows])

    def tensors(self) -> list[Tensor]:
        """Every tensor; B first."""
        return [self.embedding]

    @staticmethod
    def stack(parts: Sequence[ClassContext]) -> ClassContext:
        """Concatenate contexts along B."""
        return ClassContext(torch.cat([part.embedding for part in parts]))


class MarBackbone(nn.Module):
    """Known tokens and a class in, one conditioning vector z per position out."""

    packs_known = True  # the encoder sees known tokens only, so its length depends on their number
    fused: torch.dtype | None = None  # of products, where sums and norms are one kernel: model/inference/precision.py

    def __init__(self, config: MarConfig):
        super().__init__()
        self.config = config
        width, length = config.width, config.buffer + config.tokens

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.02 * torch.randn(*shape))

        def stack(depth: int) -> nn.ModuleList:
            return nn.ModuleList(SelfBlock(width, config.heads, config.mlp_ratio, "none") for _ in range(depth))

        self.classes = nn.Embedding(config.classes, width)
        nn.init.normal_(self.classes.weight, std=0.02)
        self.no_class = table(width)  # replaces the class embedding in the unconditional branch
        self.token_in, self.norm_in = nn.Linear(config.channels, width), nn.LayerNorm(width, LN_EPS)
        self.encoder_pos, self.encoder = table(length, width), stack(config.encoder_depth)
        self.encoder_norm = nn.LayerNorm(width, LN_EPS)
        self.decoder_in, self.mask_token = nn.Linear(width, width), table(width)
        self.decoder_pos, self.decoder = table(length, width), stack(config.decoder_depth)
        self.decoder_norm = nn.LayerNorm(width, LN_EPS)
        self.pos_out = table(config.tokens, width)

    def encode_class(self, index: int | None) -> ClassContext:
        """The context of one class, or of none for the unconditional branch."""
        return ClassContext((self.no_class if index is None else self.classes.weight[index])[None])

    def forward(self, tokens: Tensor, known: Tensor, condition: ClassContext, most_known: int | None = None) -> Tensor:
        """One pass through encoder and decoder.

        Args:
            tokens: (B, N, C); values at unknown positions are ignored.
            known: (B, N) bool, True where a token is decided. Rows may differ in their number.
            condition: the rows' classes.
            most_known: an upper bound on the known tokens of any row. With it all shapes are fixed and the host does
                not wait for the device; without it the rows are counted.
        Returns:
            z: (B, N, D)
        """
        buffer = condition.embedding[:, None].expand(-1, self.config.buffer, -1)  # (B, 64, D)
        x = torch.cat([buffer, self.token_in(tokens)], 1)  # (B, P, D) with P = 64 + N
        # Normalised after the position has been added, buffer included.
        x = self.norm_in(x + self.encoder_pos)
        present = torch.cat([known.new_ones(len(known), self.config.buffer), known], 1)  # (B, P)
        x, place, real = pack_known(x, present, None if most_known is None else self.config.buffer + most_known)
        stream = residual(x, self.fused)
        for block in self.encoder:
            block.advance(stream, real)  # type: ignore[operator]  # ModuleList does not know its modules' type
        x = self.decoder_in(stream.normed(self.encoder_norm))  # (B, K, D)
        stream = residual(unpack_known(x, place, present, self.mask_token) + self.decoder_pos, self.fused)
        for block in self.decoder:
            block.advance(stream, None)  # type: ignore[operator]
        return stream.normed(self.decoder_norm, last=True)[:, self.config.buffer :] + self.pos_out  # (B, N, D)


class Mar(AutoregressiveModel):
    """Masked autoregressive model of ImageNet classes over continuous tokens."""

    backbone: MarBackbone
    config: MarConfig

    def __init__(self, config: MarConfig):
        super().__init__(config, MarBackbone(config))
