"""A class-conditional checkpoint served end to end: class labels are prompts, and anything else is a 400."""

from __future__ import annotations

import io
import random
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from model.checkpoint import save_checkpoint
from model.config import KlConfig, MarConfig
from model.networks.factory import build_model, build_tokenizer
from server.client import FluidClient
from tests.end_to_end.conftest import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny MAR checkpoint with random weights; the content of its images does not matter here."""
    torch.manual_seed(0)
    config = MarConfig(
        image_size=8, width=32, heads=4, encoder_depth=1, decoder_depth=1, buffer=4, classes=3, head_width=32,
        head_depth=1, tokenizer=KlConfig(widths=(32, 32), layers=1, latent_channels=4),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mar") / "tiny"
    about = {"name": "mar-tiny", "labels": ["tench, Tinca tinca", "goldfish", "golden retriever"]}
    save_checkpoint(folder, build_model(config), build_tokenizer(config.tokenizer), about)
    return folder


def test_labels_are_accepted_and_other_prompts_rejected(checkpoint: Path, tmp_path: Path) -> None:
    """The worker's canary used to be a sentence, which a class-conditional model rejects, so it never became ready."""
    with serving(tmp_path, "--checkpoint", str(checkpoint)) as url, FluidClient(url) as client:
        by_name, by_index = (client.generate(prompt, seed=1)[0] for prompt in ("a Tinca Tinca", "0"))
        assert by_name.data == by_index.data
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "golden retreiver"})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "prompt" and "golden retriever" in error["message"]
        (model,) = client.models()
        assert model["family"] == "mar" and model["labels"][0] == "tench, Tinca tinca"


def test_an_edit_by_label(checkpoint: Path, tmp_path: Path) -> None:
    """The KL tokenizer encodes the kept part; outside the mask the pixels equal those of the upload."""
    image = Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(192)).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 4, 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    with serving(tmp_path, "--checkpoint", str(checkpoint)) as url, FluidClient(url) as client:
        one, two = (client.edit("goldfish", file.getvalue(), seed=1, feather=0)[0] for _ in range(2))
        assert one.data == two.data
        [varied] = client.vary(one.data, seed=2)
        assert "'goldfish'" in varied.warnings[0]
    result = Image.open(io.BytesIO(one.data))
    different = {(x, y) for x in range(8) for y in range(8) if result.getpixel((x, y)) != image.getpixel((x, y))[:3]}
    assert different and different <= {(x, y) for x in range(4) for y in range(4)}
