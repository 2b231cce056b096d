"""Model sizes: presets, invalid configurations, and the JSON round trip."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from model.config import ConfigError, ModelConfig, VqConfig
from model.networks.factory import build_model, config_from_json
from model.networks.transformer import count_parameters
from model.presets import IMPORTED_PRESETS, MAR_PRESETS, PRESETS
from model.tokenizer_config import KlConfig, tokenizer_from_json
from tests.model.imported_models import CONFIGS

PAPER = {"166M": 166e6, "369M": 369e6, "665M": 665e6, "1.1B": 1.1e9, "3.1B": 3.1e9, "10.5B": 10.5e9}


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters, on the meta device: 10.5 billion cost no memory."""
    with torch.device("meta"):
        return count_parameters(build_model(config))


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_have_the_parameters_their_names_say(name: str) -> None:
    assert parameter_count(PRESETS[name]) == pytest.approx(PAPER[name], rel=0.03)
    assert PRESETS[name].tokens == 256 and PRESETS[name].channels == 16


# The discrete systems of the paper, read off its figure (2 % either way).
PAPER_DISCRETE = {"166M": 152e6, "369M": 333e6, "665M": 625e6, "1.1B": 1.04e9, "3.1B": 3.0e9}


@pytest.mark.parametrize("size", PAPER_DISCRETE)
def test_the_four_systems_of_a_paper_preset_differ_in_tokens_and_order_only(size: str) -> None:
    """Raster order has as many parameters; discrete tokens trade the diffusion head for a table of 8192 codes."""
    counts = {PRESETS[name].system: parameter_count(PRESETS[name]) for name in PRESETS if name.split("-")[0] == size}
    assert len(counts) == 4
    assert counts["raster-continuous"] == counts["random-continuous"]
    assert counts["raster-discrete"] == counts["random-discrete"]
    assert counts["random-discrete"] == pytest.approx(PAPER_DISCRETE[size], rel=0.05)


@pytest.mark.parametrize(("name", "published"), {"mar-b": 208e6, "mar-l": 479e6, "mar-h": 943e6}.items())
def test_mar_presets_have_the_published_sizes(name: str, published: float) -> None:
    assert parameter_count(MAR_PRESETS[name]) == pytest.approx(published, rel=0.002)
    assert MAR_PRESETS[name].tokens == 256 and MAR_PRESETS[name].channels == 16


def test_json_round_trip() -> None:
    discrete = replace(PRESETS["tiny"], head="categorical", order="raster", tokenizer=VqConfig(stride=4, codebook=16))
    for config in (*PRESETS.values(), *IMPORTED_PRESETS.values(), discrete):
        assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 70}, "image_size 70 is not a multiple"),
        ({"width": 100, "heads": 7}, "width 100 over 7 heads"),
        ({"tokenizer": {"kind": "dalle"}}, "tokenizer kind 'dalle'"),
        ({"tokenizer": {"kind": "vq", "stride": 8}}, "head 'diffusion' needs continuous .* set head to categorical"),
        ({"head": "categorical"}, "head 'categorical' needs discrete .* set head to diffusion"),
        ({"head": "softmax"}, "head 'softmax' is not known: diffusion or categorical"),
        ({"order": "spiral"}, "order 'spiral' is not known: random or raster"),
        ({"prediction": "x0"}, "prediction 'x0'"),
        ({"aligner_width": 200}, "aligner_width 200 is not a multiple of its 3 heads, .* a multiple of 64 fits"),
        ({"family": "dit"}, "family 'dit'"),
        ({"widht": 3}, "unknown key 'widht' in section 'model'"),
        ({"tokenizer": {"strid": 8}}, "unknown key 'strid' in section 'tokenizer'"),
    ],
)
def test_a_bad_configuration_names_the_field(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        config_from_json({**PRESETS["emoji-64"].to_json(), **change})


def test_mar_is_random_order_over_continuous_tokens_only() -> None:
    with pytest.raises(ConfigError, match=r"family 'mar' has head diffusion and order random, .* choose family fluid"):
        replace(MAR_PRESETS["mar-b"], order="raster")


def test_the_four_systems_have_names() -> None:
    tiny, tokenizer = PRESETS["tiny"], VqConfig(stride=4, codebook=16)
    found = {
        replace(tiny, order=order, **kind).system
        for order in ("random", "raster")
        for kind in ({}, {"head": "categorical", "tokenizer": tokenizer})
    }
    assert found == {"random-continuous", "random-discrete", "raster-continuous", "raster-discrete"}


def test_a_tokenizer_with_tiles_is_read_as_one_with_strips() -> None:
    """Folders that `fluid import` wrote before strips replaced tiles did not load any more."""
    for tile, strip in ((0, 0), (64, 8)):
        read = tokenizer_from_json({"kind": "kl", "tile": tile})
        assert isinstance(read, KlConfig) and read.strip == strip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_token": 50}, "bos_token 50 is not in the vocabulary of 50 tokens"),
        ({"pad_token": 10**6}, "pad_token 1000000 is not in the vocabulary"),
        ({"template": "no place"}, "template 'no place' must have one place for the prompt"),
        ({"template": "{prompt} {prompt}"}, "must have one place for the prompt"),
    ],
)
def test_what_janus_cannot_read_is_named(change: dict[str, object], message: str) -> None:
    """It was an IndexError while the engine was made."""
    with pytest.raises(ConfigError, match=message):
        replace(CONFIGS["janus"], **change)  # type: ignore[arg-type]
