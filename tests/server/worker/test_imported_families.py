"""aMUSEd, Meissonic, Janus-Pro and LlamaGen over HTTP: import of folders in their official layouts, then serving."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli.main import main
from tests.model.conversion.published import save_amused, save_janus, save_llamagen, save_meissonic
from tests.model.llamagen_restated import random_state
from tests.server.harness import Service
from tests.server.worker.real_models import (
    WAIT_S,
    assert_edited,
    difference,
    pixels,
    previews_of,
    serve_checkpoint,
)

pytestmark = pytest.mark.slow
pytest.importorskip("diffusers")


def published(family: str, folder: Path) -> list[str]:
    """Write what a user downloads; the arguments of `fluid import`."""
    if family == "amused":
        save_amused(folder, grid=8)
    elif family == "meissonic":
        save_meissonic(folder, halved=False)
    elif family == "janus":
        save_janus(folder)
    else:
        folder.mkdir()
        return [str(save_llamagen(folder, random_state())), "--text", str(folder / "t5"), "--heads", "2"]
    return [str(folder)]


@pytest.mark.parametrize("family", ["amused", "meissonic", "janus", "llamagen"])
def test_published_weights_are_imported_and_served(
    family: str, tmp_path: Path, new_service: Callable[..., Service], capsys: pytest.CaptureFixture[str]
) -> None:
    source, *options = published(family, tmp_path / "download")
    assert main(["import", source, str(tmp_path / "served"), *options]) == 0
    assert "fluid generate" in capsys.readouterr().out
    # Layers this narrow are not packed for bfloat16.
    service = serve_checkpoint(new_service, tmp_path / "served", max_rows=2, dtype="float32")
    (model,) = service.client.models()
    assert model["license"] and model["source"].startswith("https://huggingface.co/")
    raster = family in ("janus", "llamagen")
    assert model["system"] == ("raster-discrete" if raster else "random-discrete")
    assert bool(model["conditions"]) == (family in ("amused", "janus"))
    assert model["defaults"]["order"] == ("raster" if raster else "confidence")

    request: dict[str, Any] = {"prompt": "a red cat", "seed": 5}
    if not raster:
        request["num_inference_steps"] = 6
    first = service.client.generate(**request)[0].data
    assert service.client.generate(**request)[0].data == first
    whole = pixels(first)
    assert whole.size == tuple(model["image_size"]) and difference(whole, pixels(service.client.generate(
        **{**request, "prompt": "blue"})[0].data)) > 0  # fmt: skip

    url = f"{service.settings.base_url}/v1/images/generations"
    answer = httpx.post(url, json={**request, "negative_prompt": "blue"}, timeout=WAIT_S)
    assert answer.status_code == (400 if raster else 200)
    if raster:
        assert answer.json()["error"]["param"] == "negative_prompt"
    else:
        assert difference(pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])), whole) > 0

    previews_of(service, request, whole)
    side, steps = whole.width, {} if raster else {"num_inference_steps": 4}
    assert_edited(service, whole, (side // 2, side // 2, side, side), "blue", **steps)
