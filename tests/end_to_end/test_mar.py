"""A class-conditional checkpoint behind the whole service: labels in, a 400 for what is none."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import KlConfig, MarConfig
from model.families import build_model, build_tokenizer
from server.client import FluidClient

from .conftest import serving


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: what is drawn does not matter here."""
    torch.manual_seed(0)
    config = MarConfig(
        image_size=8, width=32, heads=4, encoder_depth=1, decoder_depth=1, buffer=4, classes=3, head_width=32,
        head_depth=1, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mar") / "tiny"
    about = {"name": "mar-tiny", "labels": ["tench, Tinca tinca", "goldfish", "golden retriever"]}
    save_checkpoint(folder, build_model(config), build_tokenizer(config.tokenizer), about)
    return folder


def test_labels_are_drawn_and_others_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The worker's canary was once a prompt in words, which no model of classes can draw: it never became ready."""
    with serving(tmp_path, "--checkpoint", str(checkpoint)) as url, FluidClient(url) as client:
        by_name, by_index = (client.generate(prompt, seed=1)[0] for prompt in ("a Tinca Tinca", "0"))
        assert by_name.data == by_index.data
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "golden retreiver"})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "prompt" and "golden retriever" in error["message"]
        (model,) = client.models()
        assert model["family"] == "mar" and model["labels"][0] == "tench, Tinca tinca"
