"""Named model sizes: the shipped models, the paper's, MAR's and NOVA's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from model.config import (
    DdpmConfig,
    FluidConfig,
    KlConfig,
    MarConfig,
    ModelConfig,
    NovaConfig,
    TextConfig,
    TokenizerConfig,
    VqConfig,
)

# Stable Diffusion's autoencoder has stride 8 and 4 channels; 2×2 positions make a token of 16 channels.
_SD_VAE_2X2 = KlConfig(widths=(128, 256, 512, 512), latent_channels=4, attention=False, patch=2, scale=0.18215)


_T5_XXL = TextConfig(kind="transformers", name="google/t5-v1_1-xxl", dim=4096, max_tokens=128)


def _mar(width: int, depth: int, heads: int, head_width: int, head_depth: int) -> MarConfig:
    return MarConfig(
        width=width, encoder_depth=depth, decoder_depth=depth, heads=heads,
        head_width=head_width, head_depth=head_depth,
    )  # fmt: skip


# A VQGAN of 8192 codes on a stride of 16, as the paper's; only its sizes matter here.
_PAPER_CODES = VqConfig(stride=16, channels=16, codebook=8192)


def _paper(
    width: int, depth: int, order: Literal["random", "raster"] = "random", discrete: bool = False
) -> FluidConfig:
    return FluidConfig(
        image_size=256, width=width, depth=depth, heads=width // 64, aligner_depth=6, head_width=width, head_depth=6,
        order=order, head="categorical" if discrete else "diffusion",
        tokenizer=_PAPER_CODES if discrete else _SD_VAE_2X2, text=_T5_XXL,
    )  # fmt: skip


# Width and depth by the name of the random-continuous system; a discrete one has 8 to 5 % less, since its head is a
# table instead of an MLP (docs/models.md).
_PAPER_SIZES = {
    "166M": (768, 11), "369M": (1024, 15), "665M": (1280, 18), "1.1B": (1536, 22), "3.1B": (2048, 40),
}  # fmt: skip


# The comparison of the paper's four systems on scenes (docs/models.md): 64 tokens of 16×16 pixels in all. A token is 32
# numbers, or one of 4096 codes; the codes' table takes the place of the diffusion head, and both weigh about the same.
_SCENES_TOKENS = TokenizerConfig(stride=16, channels=32)
_SCENES_CODES = VqConfig(stride=16, channels=16, codebook=4096)


def _compared(
    order: Literal["random", "raster"], discrete: bool, width: int, depth: int, head_width: int
) -> FluidConfig:
    return FluidConfig(
        image_size=128, width=width, depth=depth, heads=4, aligner_depth=1,
        head_width=head_width, head_depth=3, prediction="v", positions="sincos_rope", clamp=10.0, order=order,
        head="categorical" if discrete else "diffusion", tokenizer=_SCENES_CODES if discrete else _SCENES_TOKENS,
        text=TextConfig(max_tokens=28),
    )  # fmt: skip


# The paper (arXiv 2410.13863) names its sizes but gives no table of depths and widths. Those here are ours, chosen so
# that the parameter count, text encoder and tokenizer excluded, is within 3 % of the name (tests/model/test_config.py).
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
    # Four times the pixels of emoji-64 for the same 64 tokens: 32 channels on a stride of 16 (docs/log.md)
    "scenes-128": FluidConfig(
        image_size=128, width=224, depth=5, heads=4, aligner_depth=1, aligner_width=192,
        head_width=256, head_depth=3, prediction="v", positions="sincos_rope", clamp=10.0,
        tokenizer=TokenizerConfig(stride=16, channels=32), text=TextConfig(max_tokens=28),
    ),
    # Scenes and a breadth of single things, with alpha; see model/recipes/atlas-128.toml. Two blocks more than
    # scenes-128 and its width, so that its training need not be repeated.
    "atlas-128": FluidConfig(
        image_size=128, width=224, depth=7, heads=4, aligner_depth=1, aligner_width=192,
        head_width=256, head_depth=3, prediction="flow", flow_shift=1.0, positions="sincos_rope", clamp=10.0,
        tokenizer=TokenizerConfig(stride=16, channels=48, widths=(32, 64, 128), image_channels=4, overlap=True),
        text=TextConfig(max_tokens=28),
    ),
    "compare-random-continuous": _compared("random", False, 160, 4, 176),
    "compare-random-discrete": _compared("random", True, 160, 4, 176),
    "compare-raster-continuous": _compared("raster", False, 160, 4, 176),
    "compare-raster-discrete": _compared("raster", True, 160, 4, 176),
    "compare-random-continuous-small": _compared("random", False, 96, 3, 128),
    "compare-random-continuous-large": _compared("random", False, 256, 5, 256),
}  # fmt: skip

# Random order over continuous tokens, which is Fluid, has plain names; the paper's 10.5B exists as such only.
PAPER_PRESETS: dict[str, FluidConfig] = {
    **{size: _paper(*shape) for size, shape in _PAPER_SIZES.items()},
    "10.5B": _paper(4096, 32),
    **{f"{size}-random-discrete": _paper(*shape, "random", True) for size, shape in _PAPER_SIZES.items()},
    **{f"{size}-raster-continuous": _paper(*shape, "raster", False) for size, shape in _PAPER_SIZES.items()},
    **{f"{size}-raster-discrete": _paper(*shape, "raster", True) for size, shape in _PAPER_SIZES.items()},
}
PRESETS |= PAPER_PRESETS


# The released sizes of MAR (arXiv 2406.11838), with diffusion heads of depth × width 6×1024, 8×1280 and 12×1536 as they
# were trained, which is not the official command line's default.
MAR_PRESETS: dict[str, MarConfig] = {
    "mar-b": _mar(768, 12, 12, 1024, 6),
    "mar-l": _mar(1024, 16, 16, 1280, 8),
    "mar-h": _mar(1280, 20, 16, 1536, 12),
}


def _nova(width: int, heads: int, image_size: int) -> NovaConfig:
    sd = image_size == 512  # Stable Diffusion's autoencoder and DDPM; SDXL's and flow matching above
    return NovaConfig(
        image_size=image_size, width=width, heads=heads, head_width=width, prediction="eps" if sd else "flow",
        ddpm=DdpmConfig() if sd else None,
        tokenizer=_SD_VAE_2X2 if sd else replace(_SD_VAE_2X2, scale=0.13025, strip=8),
        text=TextConfig(kind="transformers", name="microsoft/phi-2", dim=2560, max_tokens=256),
    )  # fmt: skip


# The released sizes of NOVA (arXiv 2412.14169), named as their folders. `fluid import` reads the sizes and the chain
# from the folder; these serve to plan with.
NOVA_PRESETS: dict[str, NovaConfig] = {
    "nova-d48w1024-sd512": _nova(1024, 16, 512),
    "nova-d48w768-sdxl1024": _nova(768, 12, 1024),
    "nova-d48w1024-sdxl1024": _nova(1024, 16, 1024),
    "nova-d48w1536-sdxl1024": _nova(1536, 16, 1024),
}

IMPORTED_PRESETS: dict[str, ModelConfig] = {**MAR_PRESETS, **NOVA_PRESETS}
