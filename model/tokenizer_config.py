"""Sizes of the image tokenizers; model/config.py has those of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the field, its value and valid ones."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Our own image tokenizer, networks/tokenizer.py: (3, image_size, image_size) pixels <-> (channels, grid, grid).

    Attributes:
        image_channels: 3 for RGB, 4 for RGB and alpha.
        overlap: decode each token into twice its stride, so that neighbours blend across their border.
    """

    kind: Literal["pca_skip"] = "pca_skip"
    stride: int = 8
    channels: int = 16
    widths: tuple[int, ...] = (32, 64, 96)  # fine to coarse
    image_channels: Literal[3, 4] = 3
    overlap: bool = False

    def __post_init__(self) -> None:
        _check_image_channels(self.image_channels)

    @property
    def discrete(self) -> bool:
        """False: a token is C numbers."""
        return False


@dataclass(frozen=True)
class KlConfig:
    """A KL autoencoder of latent diffusion (model/networks/kl_tokenizer.py); the defaults are MAR's kl16."""

    kind: Literal["kl"] = "kl"
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)  # fine to coarse; each width except the last halves the image
    layers: int = 2  # residual blocks per width in the encoder; the decoder has one more
    groups: int = 32  # in every GroupNorm
    latent_channels: int = 16
    attention: bool = True  # self-attention at the encoder's coarsest width (kl16 has it, Stable Diffusion does not)
    patch: int = 1  # patch × patch neighbouring latents make one token (Fluid: 2, MAR: 1)
    scale: float = 0.2325  # latents times this have unit variance

    @property
    def stride(self) -> int:
        """Pixels on one side of a token."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def channels(self) -> int:
        """C."""
        return self.latent_channels * self.patch**2

    @property
    def discrete(self) -> bool:
        """False: a token is C numbers."""
        return False


@dataclass(frozen=True)
class VqConfig:
    """A vector-quantised tokenizer (model/networks/vq_tokenizer.py): a token is the index of one of K code vectors.

    Attributes:
        channels: dimension of a code vector.
        codebook: K, the number of code vectors.
        image_channels: 3 for RGB, 4 for RGB and alpha.
        quantizer: how codes are chosen, by name.
    """

    kind: Literal["vq"] = "vq"
    stride: int = 16
    channels: int = 16
    codebook: int = 8192
    widths: tuple[int, ...] = (32, 64, 128)  # fine to coarse
    image_channels: Literal[3, 4] = 3
    quantizer: Literal["vq", "fsq"] = "vq"

    def __post_init__(self) -> None:
        _check_image_channels(self.image_channels)

    @property
    def discrete(self) -> bool:
        """True: a token is an index."""
        return True


TOKENIZERS: dict[str, type[TokenizerConfig] | type[KlConfig] | type[VqConfig]] = {
    "pca_skip": TokenizerConfig,
    "kl": KlConfig,
    "vq": VqConfig,
}


def _check_image_channels(channels: int) -> None:
    if channels not in (3, 4):
        raise ConfigError(f"image_channels {channels!r} is not known: 3 (RGB) or 4 (RGB and alpha)")
