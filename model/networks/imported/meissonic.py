"""Meissonic and Monetico (arXiv 2410.08261): a masked image model of diffusers' Flux blocks.

    ids -> embedding, norm, 1×1 convolution -> norm, 2×2 convolution of stride 2 (1024 px) -> norm, linear
        -> double blocks over text and image, single blocks over both -> norm, linear
        -> norm, transposed convolution (1024 px) -> 1×1 convolution, norm -> z

All norms outside the blocks are RMS norms. The time that modulates the blocks is the number of steps still to come,
which the pipeline of the released code feeds, times 1000; in float32, since bfloat16 would round 63000.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ConfigError
from model.discrete_config import MeissonicConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.imported.amused import MISSING_DIFFUSERS, micro_conditions, token_ids
from model.networks.imported.encoded_text import EncodedText

EPS = 1e-6
SINUSOID = 256  # channels of the sinusoidal embedding of a time or of a micro-condition


class _HeadNorm(nn.RMSNorm):
    """The norm of queries and keys, in float32 whatever their dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class _Resampled(nn.Module):
    """A norm and a 2×2 convolution of stride 2, plain or transposed; the names are those of the weights."""

    def __init__(self, width: int, up: bool):
        super().__init__()
        self.norm = nn.RMSNorm(width, EPS)
        layer = nn.ConvTranspose2d if up else nn.Conv2d
        self.conv = layer(width, width, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h/2, w/2), or (B, D, 2h, 2w)."""
        y: Tensor = self.conv(self.norm(x.movedim(1, -1)).movedim(-1, 1))
        return y


class _Embed(nn.Module):
    def __init__(self, config: MeissonicConfig):
        super().__init__()
        width = config.width
        self.embeddings = nn.Embedding(config.vocabulary, width)
        self.layer_norm = nn.RMSNorm(width, EPS)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, g, g) -> (B, D, g, g)."""
        y: Tensor = self.conv(self.layer_norm(self.embeddings(ids)).movedim(-1, 1))
        return y


class MeissonicBackbone(nn.Module):
    """Known tokens, text and time in, one vector z per position out; weights carry the released names."""

    packs_known = False
    timed = True  # reads the number of steps that follow

    def __init__(self, config: MeissonicConfig):
        super().__init__()
        try:
            from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding
            from diffusers.models.transformers.transformer_flux import (
                FluxPosEmbed,
                FluxSingleTransformerBlock,
                FluxTransformerBlock,
            )
        except ImportError as error:
            raise ConfigError(MISSING_DIFFUSERS) from error
        self.config = config
        width, heads, halved = config.width, config.heads, config.halved
        self.embed = _Embed(config)
        if halved:
            self.down_block = nn.ModuleDict({"downsample": _Resampled(width, up=False)})
            self.up_block = nn.ModuleDict({"upsample": _Resampled(width, up=True)})
        self.project_to_hidden_norm = nn.RMSNorm(width, EPS)
        self.project_to_hidden = nn.Linear(width, width, bias=False)
        self.project_from_hidden_norm = nn.RMSNorm(width, EPS)
        self.project_from_hidden = nn.Linear(width, width, bias=False)
        self.context_embedder = nn.Linear(config.text.dim, width)
        self.encoder_proj_layer_norm = nn.RMSNorm(width, EPS)
        self.cond_embed = TimestepEmbedding(5 * SINUSOID + config.pooled, width, sample_proj_bias=False)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(width, config.pooled)
        self.transformer_blocks = nn.ModuleList(
            FluxTransformerBlock(width, heads, config.head_dim) for _ in range(config.double_depth)
        )
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(width, heads, config.head_dim) for _ in range(config.single_depth)
        )
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            for name in [name for name, _ in block.attn.named_children() if name.startswith("norm_")]:
                setattr(block.attn, name, _HeadNorm(config.head_dim, EPS))
        self.mlm_layer = nn.ModuleDict(
            {"conv1": nn.Conv2d(width, width, 1, bias=False), "layer_norm": nn.RMSNorm(width, EPS)}
        )
        self.register_buffer("micro", micro_conditions(config), persistent=False)
        cos, sin = FluxPosEmbed(10000, list(config.axes))(_positions(config))
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.micro: Tensor

    def forward(
        self, tokens: Tensor, known: Tensor, text: EncodedText, most_known: int | None = None,
        following: Tensor | int = 0,
    ) -> Tensor:  # fmt: skip
        """One bidirectional pass.

        Args:
            tokens: (B, N); values at unknown positions are ignored.
            known: (B, N) bool, True where a token is decided.
            most_known: ignored.
            following: (B,) number of steps after this one, or one number for all rows.
        Returns:
            z: (B, N, D)
        """
        x = self.embed(token_ids(tokens, known, self.config))  # (B, D, g, g)
        if self.config.halved:
            x = self.down_block["downsample"](x)
        side = x.shape[-1]
        x = self.project_to_hidden(self.project_to_hidden_norm(x.flatten(2).transpose(1, 2)))  # (B, g'², D)
        e = self.encoder_proj_layer_norm(self.context_embedder(text.states).float())  # (B, L, D)
        temb = self._time(text.pooled, torch.as_tensor(following, device=x.device).expand(len(tokens)))
        x, e = x.float(), e.float()  # the residual stream
        rotation = (self.rope_cos, self.rope_sin)
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            e, x = block(hidden_states=x, encoder_hidden_states=e, temb=temb, image_rotary_emb=rotation)
        x = self.project_from_hidden(self.project_from_hidden_norm(x)).float()
        x = x.transpose(1, 2).unflatten(2, (side, side))
        if self.config.halved:
            x = self.up_block["upsample"](x)
        z: Tensor = self.mlm_layer["layer_norm"](self.mlm_layer["conv1"](x).flatten(2).transpose(1, 2))
        return z

    def _time(self, pooled: Tensor, following: Tensor) -> Tensor:
        """(B, D) what modulates the blocks."""
        from diffusers.models.embeddings import get_timestep_embedding

        micro = get_timestep_embedding(self.micro, SINUSOID, flip_sin_to_cos=True, downscale_freq_shift=0)
        micro = micro.flatten().expand(len(pooled), -1)  # (B, 1280)
        condition = self.cond_embed(torch.cat([pooled, micro], 1)).float()
        temb: Tensor = self.time_text_embed(following.float() * 1000, condition).float()
        return temb


def _positions(config: MeissonicConfig) -> Tensor:
    """(L + g'², 3) text position, row and column of every token; the text's are all 0."""
    side = config.grid // 2 if config.halved else config.grid
    ids = torch.zeros(side, side, 3)
    ids[..., 1] = torch.arange(side)[:, None]
    ids[..., 2] = torch.arange(side)[None, :]
    return torch.cat([torch.zeros(config.text.max_tokens, 3), ids.flatten(0, 1)])


class Meissonic(AutoregressiveModel):
    """Masked image model of text over discrete tokens."""

    backbone: MeissonicBackbone
    config: MeissonicConfig

    def __init__(self, config: MeissonicConfig):
        super().__init__(config, MeissonicBackbone(config), own_table=config.width)
