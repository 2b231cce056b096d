"""Model sizes: presets, invalid configurations, and the JSON round trip."""

from __future__ import annotations

import json

import pytest
import torch

from model.config import ConfigError, ModelConfig
from model.networks.factory import build_model
from model.networks.transformer import count_parameters
from model.presets import MAR_PRESETS, PRESETS

PAPER = {"166M": 166e6, "369M": 369e6, "665M": 665e6, "1.1B": 1.1e9, "3.1B": 3.1e9, "10.5B": 10.5e9}


def parameter_count(config: ModelConfig) -> int:
    """Trainable parameters, on the meta device: 10.5 billion cost no memory."""
    with torch.device("meta"):
        return count_parameters(build_model(config))


@pytest.mark.parametrize("name", PAPER)
def test_paper_presets_have_the_parameters_their_names_say(name: str) -> None:
    assert parameter_count(PRESETS[name]) == pytest.approx(PAPER[name], rel=0.03)
    assert PRESETS[name].tokens == 256 and PRESETS[name].channels == 16


@pytest.mark.parametrize(("name", "published"), {"mar-b": 208e6, "mar-l": 479e6, "mar-h": 943e6}.items())
def test_mar_presets_have_the_published_sizes(name: str, published: float) -> None:
    assert parameter_count(MAR_PRESETS[name]) == pytest.approx(published, rel=0.002)
    assert MAR_PRESETS[name].tokens == 256 and MAR_PRESETS[name].channels == 16


def test_json_round_trip() -> None:
    for config in (*PRESETS.values(), *MAR_PRESETS.values()):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 70}, "image_size 70 is not a multiple"),
        ({"width": 100, "heads": 7}, "width 100 over 7 heads"),
        ({"tokenizer": {"kind": "vq"}}, "tokenizer kind 'vq'"),
        ({"prediction": "x0"}, "prediction 'x0'"),
        ({"family": "dit"}, "family 'dit'"),
        ({"widht": 3}, "unknown key 'widht' in section 'model'"),
        ({"tokenizer": {"strid": 8}}, "unknown key 'strid' in section 'tokenizer'"),
    ],
)
def test_a_bad_configuration_names_the_field(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ModelConfig.from_json({**PRESETS["emoji-64"].to_json(), **change})
