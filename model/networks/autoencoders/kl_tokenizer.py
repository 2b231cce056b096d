"""The KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752) as an image tokenizer, from diffusers.

MAR uses kl16 (16 channels, stride 16); Stable Diffusion's has 4 channels at stride 8, and Fluid makes one token of
2×2 of its positions. A latent is the posterior's mean; multiplied by `scale` it has unit variance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ConfigError, KlConfig
from model.networks.autoencoders.strips import decode_in_strips


class KlTokenizer(nn.Module):
    """Pixels in [-1, 1] <-> tokens; weights under `vae` carry diffusers' names."""

    def __init__(self, config: KlConfig):
        super().__init__()
        try:
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        except ImportError as error:
            raise ConfigError(
                "this checkpoint's image tokenizer is a KL autoencoder, which needs the package diffusers: "
                "pip install '.[mar]' in a clone"
            ) from error
        self.config = config
        levels = len(config.widths)
        coarsest = "AttnDownEncoderBlock2D" if config.attention else "DownEncoderBlock2D"
        self.vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=config.latent_channels,
            block_out_channels=config.widths, layers_per_block=config.layers, norm_num_groups=config.groups,
            down_block_types=("DownEncoderBlock2D",) * (levels - 1) + (coarsest,),
            up_block_types=("UpDecoderBlock2D",) * levels,
        )  # fmt: skip

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N, C), the mean of the posterior."""
        z = self.vae.encode(pixels).latent_dist.mode() * self.config.scale  # (B, c, H/s, W/s)
        return F.pixel_unshuffle(z, self.config.patch).flatten(2).transpose(1, 2)

    def decode(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, 3, H, W), nominally in [-1, 1] (not clipped)."""
        grid = round(tokens.shape[1] ** 0.5)
        z = tokens.transpose(1, 2).unflatten(2, (grid, grid))  # (B, C, g, g)
        latents = F.pixel_shuffle(z, self.config.patch) / self.config.scale
        if strip := self.config.strip:  # one image at a time: the memory does not grow with the batch
            return torch.cat([decode_in_strips(self.vae, each, strip) for each in latents.split(1)])
        decoded: Tensor = self.vae.decode(latents).sample
        return decoded
