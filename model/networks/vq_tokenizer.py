"""The discrete image tokenizer: the autoencoder of tokenizer.py with a quantiser between its halves.

The quantiser is FSQ (Mentzer et al. 2023, arXiv 2309.15505) or a codebook that follows the latents (van den Oord et al.
2017, arXiv 1711.00937), both of the package vector-quantize-pytorch. A token is the number of a code, 0 to K − 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.config import ConfigError, TokenizerConfig, VqConfig
from model.networks.tokenizer import PcaSkipTokenizer

# Both of the codebook "vq": of the moving averages, and the average count below which a code takes a new place.
DECAY, DEAD = 0.99, 0.01
COMMITMENT = 0.25  # weight of the distance between latents and their codes


class VqTokenizer(nn.Module):
    """Pixels in [-1, 1] <-> numbers of codes.

    cluster: for training, let a codebook start as the means of the first latents (k-means) rather than at random.
    """

    def __init__(self, config: VqConfig, cluster: bool = False):
        super().__init__()
        self.config = config
        self.autoencoder = PcaSkipTokenizer(
            TokenizerConfig(
                stride=config.stride, channels=config.channels, widths=config.widths,
                image_channels=config.image_channels, overlap=config.overlap,
            )
        )  # fmt: skip
        self.quantizer = _quantizer(config, cluster)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, C) -> code vectors that pass gradients on (B, N, C), codes (B, N) and the commitment loss."""
        with torch.autocast(latents.device.type, enabled=False):  # distances in bfloat16 would confuse codes
            return self._quantize(latents.float())

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.config.quantizer == "fsq":
            vectors, codes = self.quantizer(latents)
            return vectors, codes.long(), latents.new_zeros(())
        vectors, codes, loss = self.quantizer(latents)
        return vectors, codes.long(), loss.sum()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3 or 4, H, W) in [-1, 1] -> (B, grid, grid) int64."""
        codes = self.quantize(self.autoencoder.encode(pixels))[1]
        grid = round(codes.shape[1] ** 0.5)
        return codes.unflatten(1, (grid, grid))

    def embed(self, codes: Tensor) -> Tensor:
        """(...) numbers of codes -> (..., C) code vectors; that of -1, undecided, is zero, the mean of all latents."""
        flat = codes.clamp_min(0).reshape(1, -1)
        if self.config.quantizer == "fsq":
            vectors: Tensor = self.quantizer.indices_to_codes(flat)
        else:
            vectors = self.quantizer.get_codes_from_indices(flat)
        return vectors.reshape(*codes.shape, self.config.channels) * (codes >= 0)[..., None]

    def decode(self, codes: Tensor) -> Tensor:
        """(B, grid, grid) or (B, N) codes -> (B, 3 or 4, H, W), nominally in [-1, 1], not clipped."""
        return self.autoencoder.decode(self.embed(codes.flatten(1)))


def _quantizer(config: VqConfig, cluster: bool) -> Any:
    """The package's module; imported here, because it takes longer than all else in this folder to import."""
    try:
        from vector_quantize_pytorch import FSQ, VectorQuantize
    except ImportError as error:
        raise ConfigError(
            "this checkpoint's image tokenizer is discrete, which needs the package vector-quantize-pytorch: "
            "pip install '.[worker]' in a clone"
        ) from error
    if config.quantizer == "fsq":
        return FSQ(list(config.levels))
    return VectorQuantize(
        config.channels, config.codebook, decay=DECAY, kmeans_init=cluster, threshold_ema_dead_code=DEAD,
        commitment_weight=COMMITMENT,
    )  # fmt: skip


def utilisation(codes: Tensor, codebook: int) -> tuple[float, float]:
    """Share of the codebook that occurs in `codes`, and the perplexity of its use: exp of the entropy, at most K."""
    counts = torch.bincount(codes.flatten(), minlength=codebook).double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
