"""The paper's four systems over HTTP with tiny weights: a seed, an edit, previews, and a resume after a crash."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from model.checkpoint import save_checkpoint
from model.networks.factory import AnyTokenizer, build_tokenizer
from server.client import FluidClient
from server.settings import Settings
from tests.model.conftest import SYSTEMS, random_model, system_config
from tests.server.harness import Service, until
from tests.server.worker.test_snapshots import metric

pytestmark = pytest.mark.slow
SIDE, TOKENS, WAIT_S = 64, 256, 240
ROUNDING = 3  # of 255; a resumed raster row computes its keys and values in another batch


def pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two values."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def apart(one: Image.Image, other: Image.Image) -> float:
    """The root of the mean squared difference, of 255: rounding that 256 tokens in a row may have amplified."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).rms)


def vivid(tokenizer: AnyTokenizer) -> AnyTokenizer:
    """Raise the contrast of an untrained tokenizer, whose images are nearly grey."""
    for name, value in tokenizer.named_parameters():
        if name.endswith("synthesis.weight"):
            value.data.mul_(8)
    return tokenizer


def events(service: Service, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The server-sent events of a streamed generation."""
    found: list[tuple[str, dict[str, Any]]] = []
    url = f"{service.settings.base_url}/v1/images/generations"
    with httpx.stream("POST", url, json={**body, "stream": True}, timeout=WAIT_S) as response:
        assert response.status_code == 200
        name = ""
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data" and value.startswith("{"):
                found.append((name, json.loads(value)))
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_is_served(system: str, tmp_path: Path, new_service: Callable[..., Service]) -> None:
    config = replace(system_config(system), image_size=SIDE, width=64, depth=4)
    save_checkpoint(tmp_path / "tiny", random_model(config), vivid(build_tokenizer(config.tokenizer)), {"name": system})
    service = new_service(
        engine=Settings().engine, checkpoint=str(tmp_path / "tiny"), threads=1, max_rows=2, snapshot_steps=4, workers=0
    )
    service.add_worker()
    service.client.wait_ready(timeout_s=WAIT_S)
    service.client.close()
    service.client = FluidClient(service.settings.base_url, timeout_s=WAIT_S, max_retries=0)
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

    stream = events(service, {**request, "partial_images": 2})
    previews = [pixels(base64.b64decode(data["b64_json"])) for name, data in stream if name.endswith("partial_image")]
    whole = pixels(expected)
    assert previews and all(difference(preview, whole) > ROUNDING for preview in previews)
    if raster:  # filled from the top
        top = (0, 0, SIDE, SIDE // 8)
        assert difference(previews[-1].crop(top), whole.crop(top)) <= ROUNDING

    hole = pixels(expected).convert("RGBA")
    hole.paste((0, 0, 0, 0), (16, 16, 48, 48))
    file = io.BytesIO()
    hole.save(file, "PNG")
    one, two = (service.client.edit("a blue cat", file.getvalue(), seed=1, feather=0)[0].data for _ in range(2))
    assert one == two
    edited, kept = pixels(one), (0, 0, SIDE, 16)
    assert difference(edited.crop(kept), whole.crop(kept)) == 0 and difference(edited, whole) > ROUNDING

    job = service.client.submit(**request)
    until(lambda: service.client.job(job["id"])["progress"]["step"] >= 100, seconds=60)
    service.workers[0].kill()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=WAIT_S)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    resumed = pixels(service.client.image(job["id"]))
    assert difference(resumed, whole) == 0 or (raster and apart(resumed, whole) < 2)  # its keys and values are new
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows")
