"""aMUSEd (arXiv 2401.01808): diffusers' UVit2DModel as a backbone.

Its last layer, a 1×1 convolution onto the codebook, is the categorical head's table; z is what goes into it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.config import ConfigError
from model.discrete_config import AmusedConfig, MaskedConfig
from model.networks.autoregressive_model import AutoregressiveModel
from model.networks.imported.encoded_text import EncodedText

MISSING_DIFFUSERS = "a checkpoint of this family needs the package diffusers: pip install '.[mar]' in a clone"


def token_ids(tokens: Tensor, known: Tensor, config: MaskedConfig) -> Tensor:
    """(B, N) tokens and which are known -> (B, g, g) entries of the embedding table, the mask token's where not."""
    ids = torch.where(known, tokens, config.mask_token)
    return ids.unflatten(1, (config.grid, config.grid))


def micro_conditions(config: MaskedConfig) -> Tensor:
    """(5,) width, height, crop and aesthetic score, as the pipelines set them."""
    return torch.tensor([config.image_size, config.image_size, 0, 0, config.aesthetic_score], dtype=torch.float32)


class AmusedBackbone(nn.Module):
    """Known tokens and text in, one vector z per position out; weights under `net` carry diffusers' names."""

    packs_known = False

    def __init__(self, config: AmusedConfig):
        super().__init__()
        try:
            from diffusers.models.unets.uvit_2d import UVit2DModel
        except ImportError as error:
            raise ConfigError(MISSING_DIFFUSERS) from error
        self.config = config
        self.net = UVit2DModel(
            hidden_size=config.width, cond_embed_dim=config.pooled, encoder_hidden_size=config.text.dim,
            vocab_size=config.vocabulary, codebook_size=config.codebook, in_channels=config.embedding,
            block_out_channels=config.block_width, num_res_blocks=config.block_layers, downsample=config.halved,
            upsample=config.halved, block_num_heads=config.block_heads, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=config.feed_forward, sample_size=config.grid,
        )  # fmt: skip
        self.net.mlm_layer.conv2 = nn.Identity()
        # In bfloat16 these would pass it on to the residual stream and to convolutions of float32.
        for layer in (self.net.project_to_hidden, self.net.project_from_hidden):
            layer.unpacked = True
        self.register_buffer("micro", micro_conditions(config), persistent=False)
        self.micro: Tensor

    def forward(self, tokens: Tensor, known: Tensor, text: EncodedText, most_known: int | None = None) -> Tensor:
        """One bidirectional pass.

        Args:
            tokens: (B, N); values at unknown positions are ignored.
            known: (B, N) bool, True where a token is decided.
            most_known: ignored.
        Returns:
            z: (B, N, `embedding`)
        """
        micro = self.micro.expand(len(tokens), -1)
        ids = token_ids(tokens, known, self.config)
        return cast(Tensor, self.net(ids, text.states, text.pooled, micro)).flatten(2).transpose(1, 2)


class Amused(AutoregressiveModel):
    """Masked image model of text over discrete tokens."""

    backbone: AmusedBackbone
    config: AmusedConfig

    def __init__(self, config: AmusedConfig):
        super().__init__(config, AmusedBackbone(config), own_table=config.embedding)
