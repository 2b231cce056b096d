"""The image tokenizer with overlapping tokens and alpha, and the measure of visible token borders."""

from __future__ import annotations

import contextlib

import pytest
import torch

from model.config import ConfigError, TokenizerConfig
from model.inference.precision import autocast
from model.networks.tokenizer import PcaSkipTokenizer, psnr, reconstruct, seam_ratio
from model.presets import PRESETS

OVERLAPPING = TokenizerConfig(stride=8, channels=8, widths=(8, 8, 16), image_channels=4, overlap=True)


def smooth_images(count: int) -> torch.Tensor:
    """(count, 4, 32, 32) sums of slow waves, with alpha."""
    torch.manual_seed(0)
    place = torch.linspace(0, 3, 32)
    phase = 6 * torch.rand(count, 4, 1, 1)
    return 0.5 * torch.sin(place[:, None] + phase) + 0.5 * torch.cos(place[None] * 1.5 + phase)


def test_overlapping_tokens_start_at_pca_too() -> None:
    images = smooth_images(64)
    tokenizer = PcaSkipTokenizer(OVERLAPPING)
    tokenizer.start_from_pca(images)
    tokenizer.fit_normalisation(images)
    with torch.no_grad():
        assert reconstruct(tokenizer, images).shape == images.shape
        assert psnr(reconstruct(tokenizer, images), images).mean() > 25
        assert tokenizer.encode(images).shape == (64, 16, 8)


def test_a_changed_token_reaches_into_its_neighbours() -> None:
    """The point of overlap: the kernel does not end where the token's own patch does."""
    tokenizer = PcaSkipTokenizer(OVERLAPPING)
    assert tokenizer.synthesis.weight.shape == (8, 4, 16, 16)
    tokens = torch.zeros(1, 16, 8)
    other = tokens.clone()
    other[:, 5] = 1.0  # row 1, column 1: pixels 8 to 15
    with torch.no_grad():
        changed = (tokenizer.decode(other) - tokenizer.decode(tokens)).abs().amax((0, 1)) > 0
    assert changed[4:20, 4:20].all()


def test_rgb_is_opaque_to_a_tokenizer_with_alpha() -> None:
    tokenizer, images = PcaSkipTokenizer(OVERLAPPING), smooth_images(2)
    opaque = torch.cat([images[:, :3], torch.ones_like(images[:, :1])], 1)
    assert torch.equal(tokenizer.encode(images[:, :3]), tokenizer.encode(opaque))


def test_seams_are_seen_where_they_are() -> None:
    """Steps at the borders of tokens raise the ratio, the same steps elsewhere do not."""
    real = smooth_images(8)
    assert seam_ratio(real, real, 8) == pytest.approx(1.0)
    blocks = 0.3 * torch.randn(8, 4, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert seam_ratio(real + blocks, real, 8) > 3
    assert seam_ratio(real + blocks.roll((4, 4), (2, 3)), real, 8) < 1


@pytest.mark.parametrize("preset", ["tiny", "emoji-64", "scenes-128", "atlas-128"])
def test_training_products_give_the_same_tokens_pixels_and_gradients(preset: str) -> None:
    """On a CPU with AMX, atlas-128's first convolution was noise in bfloat16, and a tokenizer trained around it for
    eleven minutes: 27 dB with that bug, 12 dB in float32, which serves."""
    torch.manual_seed(0)
    config = PRESETS[preset]
    tokenizer = PcaSkipTokenizer(config.tokenizer)
    pixels = torch.randn(4, config.tokenizer.image_channels, config.image_size, config.image_size)
    found = []
    for precise in (True, False):
        tokenizer.zero_grad()
        with contextlib.nullcontext() if precise else autocast(torch.device("cpu")):
            tokens = tokenizer.encode(pixels)
            out = tokenizer.decode(tokens)
        (out * pixels).sum().backward()
        slope = tokenizer.analysis.weight.grad
        assert slope is not None
        found.append((tokens.detach(), out.detach(), slope.clone()))
    for exact, quick in zip(*found, strict=True):
        assert ((exact - quick).norm() / exact.norm()).item() < 0.05


def test_other_numbers_of_image_channels_are_rejected() -> None:
    with pytest.raises(ConfigError, match="image_channels 2"):
        TokenizerConfig(image_channels=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [2, 5, 6])
def test_a_stride_that_the_layers_do_not_have_is_refused(stride: int) -> None:
    """It was loaded, and the first image failed by sizes that do not match."""
    with pytest.raises(ConfigError, match=f"stride of {stride} is not a multiple of 4"):
        PcaSkipTokenizer(TokenizerConfig(stride=stride, channels=4, widths=(8, 8, 8)))
