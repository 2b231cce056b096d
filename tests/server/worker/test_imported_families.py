"""aMUSEd, Meissonic, Janus-Pro and LlamaGen over HTTP: import of folders in their official layouts, then serving."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli.main import main
from server.client import FluidClient
from server.settings import Settings
from tests.model.conversion.published import save_amused, save_janus, save_llamagen, save_meissonic
from tests.model.llamagen_restated import random_state
from tests.server.harness import Service
from tests.server.worker.test_four_systems import WAIT_S, difference, events, pixels

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
    service = new_service(
        engine=Settings().engine, checkpoint=str(tmp_path / "served"), threads=1, max_rows=2, workers=0,
        dtype="float32",  # layers this narrow are not packed for bfloat16
    )  # fmt: skip
    service.add_worker()
    service.client.wait_ready(timeout_s=WAIT_S)
    service.client.close()
    service.client = FluidClient(service.settings.base_url, timeout_s=WAIT_S, max_retries=0)
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

    names = [name for name, _ in events(service, {**request, "partial_images": 2})]
    assert any(name.endswith("partial_image") for name in names) and names[-1].endswith("completed")

    side = whole.size[0]
    hole = whole.convert("RGBA")
    hole.paste((0, 0, 0, 0), (side // 2, side // 2, side, side))
    file = io.BytesIO()
    hole.save(file, "PNG")
    steps = {} if raster else {"num_inference_steps": 4}
    edited = pixels(service.client.edit("blue", file.getvalue(), seed=1, feather=0, **steps)[0].data)
    kept = (0, 0, side, side // 2)
    assert difference(edited.crop(kept), whole.crop(kept)) == 0 and difference(edited, whole) > 0
