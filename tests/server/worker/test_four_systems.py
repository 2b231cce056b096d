"""The paper's four systems over HTTP with tiny weights: a seed, an edit, previews, and a resume after a crash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from model.checkpoint import save_checkpoint
from model.networks.factory import AnyTokenizer, build_tokenizer
from tests.model.conftest import SYSTEMS, random_model, system_config
from tests.server.harness import Service
from tests.server.worker.real_models import (
    ROUNDING,
    assert_edited,
    difference,
    image_after_a_crash,
    pixels,
    previews_of,
    serve_checkpoint,
)

pytestmark = pytest.mark.slow
SIDE, TOKENS = 64, 256


def apart(one: Image.Image, other: Image.Image) -> float:
    """The root of the mean squared difference, of 255: rounding that 256 tokens in a row may have amplified."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).rms)


def vivid(tokenizer: AnyTokenizer) -> AnyTokenizer:
    """Raise the contrast of an untrained tokenizer, whose images are nearly grey."""
    for name, value in tokenizer.named_parameters():
        if name.endswith("synthesis.weight"):
            value.data.mul_(8)
    return tokenizer


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_is_served(system: str, tmp_path: Path, new_service: Callable[..., Service]) -> None:
    config = replace(system_config(system), image_size=SIDE, width=64, depth=4)
    save_checkpoint(tmp_path / "tiny", random_model(config), vivid(build_tokenizer(config.tokenizer)), {"name": system})
    service = serve_checkpoint(new_service, tmp_path / "tiny", max_rows=2, snapshot_steps=4)
    (model,) = service.client.models()
    assert model["system"] == system
    raster, discrete = config.causal, config.categorical
    assert model["orders"][0] == ("raster" if raster else "random")
    assert ("confidence" in model["orders"]) == (system == "random-discrete")

    request: dict[str, Any] = {"prompt": "a red apple", "seed": 5, "guidance_scale": 2.0, "num_inference_steps": TOKENS}
    request |= {"top_k": 20, "top_p": 0.95} if discrete else {"diffusion_steps": 4}
    if system == "random-discrete":
        request["order"] = "confidence"
    expected = service.client.generate(**request)[0].data
    assert service.client.generate(**request)[0].data == expected
    assert service.client.generate(**{**request, "seed": 6})[0].data != expected

    wrong = {"diffusion_steps": 5} if discrete else {"top_k": 4}
    wrong |= {"num_inference_steps": 8} if raster else {}
    for name, value in wrong.items():
        answer = httpx.post(f"{service.settings.base_url}/v1/images/generations", json={"prompt": "x", name: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name

    whole = pixels(expected)
    previews = previews_of(service, request, whole)
    assert all(difference(preview, whole) > ROUNDING for preview in previews)
    if raster:  # filled from the top
        top = (0, 0, SIDE, SIDE // 8)
        assert difference(previews[-1].crop(top), whole.crop(top)) <= ROUNDING

    assert_edited(service, whole, (16, 16, 48, 48), "a blue cat")
    resumed = image_after_a_crash(service, request, step=100)
    assert difference(resumed, whole) == 0 or (raster and apart(resumed, whole) < 2)  # its keys and values are new
