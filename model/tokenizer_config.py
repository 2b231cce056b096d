"""Sizes of the image tokenizers; config.py has those of models."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar, Literal


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
    discrete: ClassVar[bool] = False  # tokens are vectors

    def __post_init__(self) -> None:
        _check_image_channels(self.image_channels)


@dataclass(frozen=True)
class KlConfig:
    """A KL autoencoder of latent diffusion (networks/autoencoders/kl_tokenizer.py); the defaults are MAR's kl16."""

    kind: Literal["kl"] = "kl"
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)  # fine to coarse; each width except the last halves the image
    layers: int = 2  # residual blocks per width in the encoder; the decoder has one more
    groups: int = 32  # in every GroupNorm
    latent_channels: int = 16
    attention: bool = True  # self-attention at the encoder's coarsest width (kl16 has it, Stable Diffusion does not)
    patch: int = 1  # patch × patch neighbouring latents make one token (Fluid: 2, MAR: 1)
    scale: float = 0.2325  # latents times this have unit variance
    strip: int = 0  # images are decoded in strips of this many rows of latents, which saves memory; 0: whole
    discrete: ClassVar[bool] = False

    @property
    def stride(self) -> int:
        """Pixels on one side of a token."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def channels(self) -> int:
        """C."""
        return self.latent_channels * self.patch**2


@dataclass(frozen=True)
class VqConfig:
    """Our own discrete tokenizer, networks/vq_tokenizer.py: pixels <-> one of `codebook` codes for each token.

    Attributes:
        channels: dimension of a code vector.
        codebook: K, the number of codes.
        quantizer: "vq" has a learned codebook, a moving average of the latents that each code stands for; "fsq", finite
            scalar quantisation, rounds each channel to one of its `levels`.
        levels: fsq: values of each channel, whose product is `codebook`. vq: empty.
    """

    kind: Literal["vq"] = "vq"
    stride: int = 16
    channels: int = 16
    codebook: int = 8192
    widths: tuple[int, ...] = (32, 64, 96)  # fine to coarse
    image_channels: Literal[3, 4] = 3
    overlap: bool = False  # as in TokenizerConfig
    quantizer: Literal["vq", "fsq"] = "vq"
    levels: tuple[int, ...] = ()
    discrete: ClassVar[bool] = True  # tokens are numbers of codes

    def __post_init__(self) -> None:
        _check_image_channels(self.image_channels)
        if self.quantizer not in ("vq", "fsq"):
            raise ConfigError(f"quantizer {self.quantizer!r} is not known: vq or fsq")
        if self.quantizer == "vq" and self.levels:
            raise ConfigError(f"levels {list(self.levels)} belong to quantizer fsq; vq has none: levels = []")
        if self.quantizer == "fsq" and (len(self.levels), prod(self.levels)) != (self.channels, self.codebook):
            raise ConfigError(
                f"levels {list(self.levels)} make {prod(self.levels)} codes of {len(self.levels)} channels, not "
                f"{self.codebook} of {self.channels}; choose levels that fit codebook and channels"
            )


@dataclass(frozen=True)
class VqganConfig:
    """A VQGAN as diffusers' VQModel (networks/autoencoders/vqgan_tokenizer.py), imported, not trained here.

    Attributes:
        widths: fine to coarse; each width except the last halves the image.
        channels, codebook: dimension and number of the code vectors.
        encoder_attention, decoder_attention: levels with self-attention, counted from the finest (encoder) and from
            the coarsest (decoder), as in VQModel's lists of block types.
        unit_pixels: the network's pixels are in [0, 1], not in [-1, 1].
    """

    kind: Literal["vqgan"] = "vqgan"
    widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    layers: int = 2  # residual blocks per width in the encoder; the decoder has one more
    groups: int = 32  # in every GroupNorm
    latent_channels: int = 256
    channels: int = 256
    codebook: int = 8192
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    middle_attention: bool = True
    spatial_norm: bool = False  # the decoder's norms read the code vectors
    unit_pixels: bool = False
    discrete: ClassVar[bool] = True

    @property
    def stride(self) -> int:
        """Pixels on one side of a token."""
        return int(2 ** (len(self.widths) - 1))


AnyTokenizerConfig = TokenizerConfig | KlConfig | VqConfig | VqganConfig
TOKENIZERS: dict[str, type[AnyTokenizerConfig]] = {
    "pca_skip": TokenizerConfig, "kl": KlConfig, "vq": VqConfig, "vqgan": VqganConfig,
}  # fmt: skip


def tokenizer_from_json(raw: dict[str, Any]) -> AnyTokenizerConfig:
    """Inverse of `dataclasses.asdict`, also after a round trip through JSON.

    Raises:
        ConfigError: the kind or a key is unknown, or the sizes do not fit together.
    """
    kind = raw.get("kind", "pca_skip")
    if kind not in TOKENIZERS:
        raise ConfigError(f"tokenizer kind {kind!r} is not known; this version has {', '.join(TOKENIZERS)}")
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    if kind == "kl" and sizes.pop("tile", 0):  # of earlier checkpoints: overlapping tiles, which strips replace
        sizes["strip"] = 8
    config: AnyTokenizerConfig = build_section(TOKENIZERS[kind], "tokenizer", sizes)
    return config


def build_section(cls: type, section: str, raw: dict[str, Any]) -> Any:
    names = [f.name for f in fields(cls)]
    unknown = sorted(set(raw) - set(names))
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} in section {section!r}; known: {', '.join(names)}")
    return cls(**raw)


def _check_image_channels(channels: int) -> None:
    if channels not in (3, 4):
        raise ConfigError(f"image_channels {channels!r} is not known: 3 (RGB) or 4 (RGB and alpha)")
