"""Sizes of the image tokenizers; config.py has those of models."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints


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
        check_positive(self, "stride", "channels")
        _check_widths(self.widths)
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

    def __post_init__(self) -> None:
        _check_autoencoder(self)
        check_positive(self, "patch")

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
        check_positive(self, "stride", "channels", "codebook")
        _check_widths(self.widths)
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

    def __post_init__(self) -> None:
        _check_autoencoder(self)
        check_positive(self, "channels", "codebook")

    @property
    def stride(self) -> int:
        """Pixels on one side of a token."""
        return int(2 ** (len(self.widths) - 1))


AnyTokenizerConfig = TokenizerConfig | KlConfig | VqConfig | VqganConfig
TOKENIZERS: dict[str, type[AnyTokenizerConfig]] = {
    "pca_skip": TokenizerConfig, "kl": KlConfig, "vq": VqConfig, "vqgan": VqganConfig,
}  # fmt: skip


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a tokenizer's folder.

    Raises:
        ConfigError: the file is missing, damaged or no object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): copy or import its folder again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is not a JSON object: copy or import its folder again")
    return found


def tokenizer_from_json(raw: dict[str, Any]) -> AnyTokenizerConfig:
    """Inverse of `dataclasses.asdict`, also after a round trip through JSON.

    Raises:
        ConfigError: the kind or a key is unknown, or the sizes do not fit together.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"section 'tokenizer' is {raw!r}; it is an object with keys")
    kind = raw.get("kind", "pca_skip")
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise ConfigError(f"tokenizer kind {kind!r} is not known; this version has {', '.join(TOKENIZERS)}")
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    if kind == "kl" and sizes.pop("tile", 0):  # of earlier checkpoints: overlapping tiles, which strips replace
        sizes["strip"] = 8
    config: AnyTokenizerConfig = build_section(TOKENIZERS[kind], "tokenizer", sizes)
    return config


def build_section(cls: type, section: str, raw: dict[str, Any]) -> Any:
    """An instance of `cls` from a section of JSON.

    Raises:
        ConfigError: a key is unknown, or a value is of another type or negative.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"section {section!r} is {raw!r}; it is an object with keys")
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    if unknown := sorted(set(raw) - set(names)):
        raise ConfigError(f"unknown key {unknown[0]!r} in section {section!r}; known: {', '.join(names)}")
    literal = {name for name in names if get_origin(hints[name]) is Literal}
    for key, value in raw.items():
        if key not in literal and not fits(value, hints[key]):
            raise ConfigError(f"{key} is {value!r} in section {section!r}; {type_name(hints[key])} is expected")
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(f"{key} is {value!r} in section {section!r}; it cannot be negative")
    built = cls(**raw)
    for key in sorted(literal & raw.keys()):  # after the checks of `cls`, which say more
        if raw[key] not in (known := get_args(hints[key])):
            raise ConfigError(f"{key} {raw[key]!r} is not known: {' or '.join(map(str, known))}")
    return built


def fits(value: object, hint: Any) -> bool:
    """True if a value from JSON is of the type in an annotation: a list may be a tuple, a whole number a float."""
    if isinstance(hint, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return isinstance(value, list | tuple) and (
            all(fits(each, parts[0]) for each in value) and (parts[-1] is ... or len(parts) == len(value))
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def type_name(hint: Any) -> str:
    """The type in an annotation, in words."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
    if isinstance(hint, UnionType):
        return " or ".join(dict.fromkeys(type_name(each) for each in get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list of numbers"
    return words.get(hint, "a section")


def check_positive(config: object, *names: str) -> None:
    """Raise ConfigError for the first of these sizes that is below 1."""
    for name in names:
        if (value := getattr(config, name)) < 1:
            raise ConfigError(f"{name} is {value}; it is at least 1")


def _check_image_channels(channels: int) -> None:
    if channels not in (3, 4):
        raise ConfigError(f"image_channels {channels!r} is not known: 3 (RGB) or 4 (RGB and alpha)")


def _check_widths(widths: tuple[int, ...]) -> None:
    if len(widths) != 3 or min(widths) < 1:
        raise ConfigError(f"widths {list(widths)} are not three positive numbers: fine, middle and coarse")


def _check_autoencoder(config: KlConfig | VqganConfig) -> None:
    check_positive(config, "layers", "groups", "latent_channels")
    if odd := [width for width in config.widths if width < 1 or width % config.groups]:
        raise ConfigError(f"width {odd[0]} is not a multiple of the {config.groups} groups of the norms")
    if not config.widths:
        raise ConfigError("widths is empty; an autoencoder has at least one")
