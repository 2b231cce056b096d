"""Named model sizes: the shipped models, the paper's, and MAR's."""

from __future__ import annotations

from model.config import FluidConfig, KlConfig, MarConfig, TextConfig, TokenizerConfig

# Stable Diffusion's autoencoder has stride 8 and 4 channels; 2×2 positions make a token of 16 channels.
_SD_VAE_2X2 = KlConfig(widths=(128, 256, 512, 512), latent_channels=4, attention=False, patch=2, scale=0.18215)


_T5_XXL = TextConfig(kind="transformers", name="google/t5-v1_1-xxl", dim=4096, max_tokens=128)


def _mar(width: int, depth: int, heads: int, head_width: int, head_depth: int) -> MarConfig:
    return MarConfig(
        width=width, encoder_depth=depth, decoder_depth=depth, heads=heads,
        head_width=head_width, head_depth=head_depth,
    )  # fmt: skip


def _paper(width: int, depth: int) -> FluidConfig:
    return FluidConfig(
        image_size=256, width=width, depth=depth, heads=width // 64, aligner_depth=6,
        head_width=width, head_depth=6, tokenizer=_SD_VAE_2X2, text=_T5_XXL,
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
    # Scenes and a breadth of single things, with alpha; see model/recipes/atlas-128.toml.
    "atlas-128": FluidConfig(
        image_size=128, width=256, depth=6, heads=4, aligner_depth=1, aligner_width=192,
        head_width=256, head_depth=3, prediction="flow", flow_shift=1.0, positions="sincos_rope", clamp=10.0,
        tokenizer=TokenizerConfig(stride=16, channels=48, widths=(32, 64, 128), image_channels=4, overlap=True),
        text=TextConfig(max_tokens=28),
    ),
    "166M": _paper(768, 11),
    "369M": _paper(1024, 15),
    "665M": _paper(1280, 18),
    "1.1B": _paper(1536, 22),
    "3.1B": _paper(2048, 40),
    "10.5B": _paper(4096, 32),
}  # fmt: skip


# The released sizes of MAR (arXiv 2406.11838), with diffusion heads of depth × width 6×1024, 8×1280 and 12×1536 as they
# were trained, which is not the official command line's default.
MAR_PRESETS: dict[str, MarConfig] = {
    "mar-b": _mar(768, 12, 12, 1024, 6),
    "mar-l": _mar(1024, 16, 16, 1280, 8),
    "mar-h": _mar(1280, 20, 16, 1536, 12),
}
