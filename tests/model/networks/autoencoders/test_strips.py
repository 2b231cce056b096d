"""Decoding in strips: the image of the whole decoder, and no convolution that sees more than a strip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import KlConfig
from model.networks.autoencoders.kl_tokenizer import KlTokenizer
from tests.model.networks.test_mar import apart

pytest.importorskip("diffusers")
CONFIG = KlConfig(widths=(32, 64, 64), layers=1, latent_channels=4, attention=False, patch=2, scale=0.13)


@pytest.mark.parametrize("strip", [1, 3, 8, 20])
def test_strips_make_the_whole_image(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 rows of latents in strips that divide them, that do not, and in one; two images that differ."""
    torch.manual_seed(0)
    whole = KlTokenizer(CONFIG).eval().requires_grad_(False)
    for name, value in whole.named_parameters():
        if "norm" in name:
            value.add_(0.3 * torch.randn(value.shape))
    striped = KlTokenizer(replace(CONFIG, strip=strip)).eval().requires_grad_(False)
    striped.load_state_dict(whole.state_dict())
    tokens = torch.randn(2, 64, 16) * torch.tensor([0.1, 3.0])[:, None, None]
    rows: list[int] = []
    original = F.conv2d

    def conv2d(x: Tensor, *arguments: Tensor) -> Tensor:
        if x.shape[3] > 18:  # finer than the latents
            rows.append(x.shape[2])
        return original(x, *arguments)

    expected = whole.decode(tokens)
    monkeypatch.setattr(F, "conv2d", conv2d)
    found = striped.decode(tokens)
    assert max(apart(found[i], expected[i]) for i in range(2)) < 1e-5
    assert max(rows) <= 4 * strip + 2 or strip > 8
    assert apart(striped.decode(tokens[1:]), found[1:]) < 1e-5
