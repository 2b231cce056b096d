"""The discrete tokenizer: codes, code vectors and images fit together, with either quantiser."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from model.config import ConfigError, VqConfig
from model.networks.factory import build_tokenizer
from model.networks.vq_tokenizer import VqTokenizer, utilisation
from model.tokenizer_config import tokenizer_from_json

FSQ = VqConfig(stride=4, channels=2, codebook=15, widths=(8, 8, 8), quantizer="fsq", levels=(5, 3))
VQ = replace(FSQ, channels=6, quantizer="vq", levels=())
EITHER = pytest.mark.parametrize("config", [FSQ, VQ], ids=["fsq", "vq"])


@EITHER
def test_codes_are_a_grid_and_decode_through_their_vectors(config: VqConfig) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    codes = tokenizer.encode(pixels)
    assert codes.shape == (3, 4, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 15
    vectors = tokenizer.embed(codes)
    assert vectors.shape == (3, 4, 4, config.channels)
    assert torch.equal(vectors[1, 2, 3], tokenizer.embed(codes[1, 2, 3]))
    images = tokenizer.decode(codes)
    assert images.shape == (3, 3, 16, 16)
    assert torch.equal(images, tokenizer.decode(codes.flatten(1)))


@EITHER
def test_a_code_is_the_one_nearest_to_the_latent(config: VqConfig) -> None:
    """Its own vector is quantised to itself, and every code is reachable."""
    torch.manual_seed(0)
    tokenizer = VqTokenizer(config).eval()
    every = torch.arange(15)
    vectors = tokenizer.embed(every)
    assert len(vectors.unique(dim=0)) == 15
    if config.quantizer == "fsq":  # codes live in [-1, 1], latents before tanh
        vectors = torch.atanh(vectors * 0.95)
    quantized, codes, _ = tokenizer.quantize(vectors[None])
    assert torch.equal(codes[0], every)
    torch.testing.assert_close(quantized[0], tokenizer.embed(every))


@EITHER
def test_an_undecided_token_is_neutral(config: VqConfig) -> None:
    """-1 stands for it in previews; it decodes as the mean latent, and leaves the others as they are."""
    tokenizer = VqTokenizer(config).eval()
    vectors = tokenizer.embed(torch.tensor([3, -1]))
    assert torch.equal(vectors[1], torch.zeros(config.channels)) and torch.equal(
        vectors[0], tokenizer.embed(torch.tensor(3))
    )
    assert tokenizer.decode(torch.full((1, 4, 4), -1)).shape == (1, 3, 16, 16)


@EITHER
def test_gradients_pass_the_quantiser(config: VqConfig) -> None:
    torch.manual_seed(0)
    tokenizer = VqTokenizer(config).train()
    latents = torch.randn(2, 16, config.channels, requires_grad=True)
    vectors, _, commitment = tokenizer.quantize(latents)
    (vectors.square().sum() + commitment).backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert (commitment > 0) == (config.quantizer == "vq")


def test_a_codebook_starts_as_clusters_of_the_first_latents() -> None:
    """Each starts at the mean of some latents, instead of near zero where no latent is."""
    torch.manual_seed(0)
    centres = 10 * torch.randn(15, 6)
    latents = (centres.repeat(20, 1) + 0.01 * torch.randn(300, 6))[None]
    error = {}
    for cluster in (False, True):
        tokenizer = VqTokenizer(VQ, cluster=cluster).train()
        tokenizer.quantize(latents)
        nearest = torch.cdist(centres, tokenizer.embed(torch.arange(15))).min(1).values
        error[cluster] = float(nearest.square().mean())
    assert error[True] < 0.5 * error[False]
    assert set(tokenizer.state_dict()) == set(VqTokenizer(VQ).state_dict())


@EITHER
def test_configuration_survives_json(config: VqConfig) -> None:
    assert tokenizer_from_json(json.loads(json.dumps(asdict(config)))) == config
    assert config.discrete


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codebook": 16}, "make 15 codes of 2 channels, not 16 of 2"),
        ({"channels": 3}, "choose levels that fit"),
        ({"quantizer": "vq"}, "vq has none"),
        ({"quantizer": "lfq"}, "'lfq' is not known: vq or fsq"),
        ({"image_channels": 5}, "image_channels 5"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(change: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(FSQ, **change)


def test_utilisation_counts_codes_and_evens_their_use() -> None:
    assert utilisation(torch.tensor([[0, 1], [2, 3]]), 8) == pytest.approx((0.5, 4.0))
    assert utilisation(torch.zeros(9, dtype=torch.int64), 8) == pytest.approx((0.125, 1.0))


def test_import_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vector_quantize_pytorch", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[worker\]' in a clone"):
        VqTokenizer(FSQ)


def test_the_package_is_imported_only_where_it_runs() -> None:
    """Its import takes a second and a half of processor time, on top of torch's."""
    source = Path("model/networks/vq_tokenizer.py").read_text()
    assert "\nfrom vector_quantize_pytorch" not in source and "\nimport vector_quantize_pytorch" not in source
