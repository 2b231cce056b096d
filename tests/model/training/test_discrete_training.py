"""Training with codes: the discrete tokenizer itself, and each of the paper's four systems on its tokens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import load_checkpoint
from model.config import ConfigError, VqConfig, VqganConfig
from model.networks.factory import build_tokenizer, new_tokenizer
from model.networks.tokenizer import psnr, reconstruct, to_pixels
from model.networks.vq_tokenizer import VqTokenizer
from model.presets import PRESETS
from model.training.feeds import ImageFeed
from model.training.reconstruction.load import load_tokenizer
from model.training.reconstruction.report import measure
from model.training.reconstruction.start import start_from_pca
from model.training.train import main
from model.training.train_tokenizer import train as train_tokenizer
from tests.model.conftest import SYSTEMS, system_config
from tests.model.image_set import squares
from tests.model.networks.autoencoders.test_vqgan_tokenizer import save_small

FSQ = VqConfig(stride=4, channels=2, codebook=25, widths=(8, 8, 8), quantizer="fsq", levels=(5, 5))
VQ = VqConfig(stride=4, channels=4, codebook=32, widths=(8, 8, 8))


@pytest.mark.parametrize("config", [FSQ, VQ], ids=["fsq", "vq"])
def test_a_discrete_tokenizer_trains_the_same_way_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: VqConfig
) -> None:
    """Also where codes out of use take new places at random; and it ends better than it started."""
    monkeypatch.setitem(PRESETS, "tiny-codes", replace(system_config("random-discrete"), tokenizer=config))
    data = squares()
    trained = [
        train_tokenizer("tiny-codes", data, tmp_path / run, 0, 60, 8, 0, progress=False) for run in ("one", "two")
    ]
    first, second = (tokenizer.state_dict() for tokenizer in trained)
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(0)
    start, pixels = new_tokenizer(PRESETS["tiny-codes"]), to_pixels(torch.from_numpy(data.images))
    start_from_pca(start, pixels)
    before, after = (float(psnr(reconstruct(t.eval(), pixels), pixels).mean()) for t in (start, trained[0]))
    assert after > before + 0.3
    report = measure(trained[0], data)
    assert report["codes"] == config.codebook and 0 < report["codes_used"] <= 1
    assert 1 <= report["code_perplexity"] <= config.codebook
    assert report["psnr_train_db"] == pytest.approx(after, abs=0.01)


def test_a_fixed_image_set_is_turned_into_codes_once(tmp_path: Path) -> None:
    from model.networks.text_encoder import HashEncoder

    torch.manual_seed(0)
    config, tokenizer = system_config("random-discrete"), VqTokenizer(VQ).eval()
    feed = ImageFeed(squares(), tokenizer, HashEncoder(config.text), tmp_path, batch=4, seed=0)
    assert feed.latents.shape == (8, 16) and feed.latents.dtype == torch.int64
    rows, codes, cells = feed.tokens(1)
    assert cells is None and torch.equal(codes, feed.latents[rows])
    pixels = to_pixels(torch.from_numpy(squares().images))
    assert torch.equal(feed.latents, tokenizer.encode(pixels).flatten(1))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_trains_from_a_recipe_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    config = system_config(system)
    monkeypatch.setitem(PRESETS, "tiny-system", config)
    squares().save(tmp_path / "data")
    torch.manual_seed(0)
    save_file(build_tokenizer(config.tokenizer).state_dict(), tmp_path / "tokenizer.safetensors")
    flags = {
        "preset": "tiny-system", "name": "squares", "data": tmp_path / "data", "out": tmp_path / "run",
        "tokenizer": tmp_path / "tokenizer.safetensors",
        "minutes": 0, "steps": 40, "batch": 8, "save-every": 10, "sheet-every": 1000,
        "compile": "false", "noise-draws": 2, "learning-rate": 4e-3, "warmup": 5,
    }  # fmt: skip
    main(["--recipe", "model/recipes/emoji-64.toml", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))])
    losses = [entry[2] for entry in json.loads((tmp_path / "run" / "history.json").read_text())]
    assert losses[-1] < losses[0]
    if config.categorical:  # cross-entropy in nats, which starts near that of chance
        assert losses[0] < math.log(32) * 1.2
    assert (tmp_path / "run" / "sheet-final.png").stat().st_size > 1000
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert checkpoint.config == config and checkpoint.about["name"] == "squares"


def test_a_vqgan_of_diffusers_serves_as_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    save_small(tmp_path)
    found = load_tokenizer(replace(system_config("random-discrete"), tokenizer=_vqgan(tmp_path)), str(tmp_path))
    codes = found.encode(to_pixels(torch.from_numpy(np.zeros((1, 16, 16, 3), np.uint8))))
    assert codes.shape == (1, 8, 8)
    with pytest.raises(ConfigError, match="does not fit the preset"):
        load_tokenizer(system_config("random-discrete"), str(tmp_path))
    with pytest.raises(ConfigError, match=r"are imported \(`fluid import`\), not trained here"):
        new_tokenizer(replace(system_config("random-discrete"), tokenizer=_vqgan(tmp_path)))


def _vqgan(folder: Path) -> VqganConfig:
    from model.networks.autoencoders.vqgan_tokenizer import vq_model_config

    return vq_model_config(json.loads((folder / "config.json").read_text()))
