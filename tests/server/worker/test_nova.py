"""NOVA over HTTP: a folder in the published layout, `fluid import`, real processes, and what any caller may ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli.main import main
from server.client import FluidClient
from server.settings import Settings
from tests.model.nova_restated import FLOW, HEADS, random_folder
from tests.server.harness import Service, until
from tests.server.worker.test_four_systems import ROUNDING, WAIT_S, difference, events, pixels
from tests.server.worker.test_snapshots import metric

pytestmark = pytest.mark.slow
pytest.importorskip("diffusers")
GRID = 8
SIDE = 16 * GRID


def test_published_weights_are_imported_and_served(
    tmp_path: Path, new_service: Callable[..., Service], capsys: pytest.CaptureFixture[str]
) -> None:
    """A seed, company, a negative prompt, sizes, previews, an edit, and a resume after a crash."""
    source = random_folder(tmp_path / "download", FLOW, grid=GRID)
    assert main(["import", str(source), str(tmp_path / "served"), "--heads", str(HEADS)]) == 0
    assert "fluid generate" in capsys.readouterr().out
    service = new_service(
        engine=Settings().engine, checkpoint=str(tmp_path / "served"), threads=1, max_rows=4, workers=0,
        dtype="float32", snapshot_steps=4,
    )  # fmt: skip
    service.add_worker()
    service.client.wait_ready(timeout_s=WAIT_S)
    service.client.close()
    service.client = FluidClient(service.settings.base_url, timeout_s=WAIT_S, max_retries=0)
    (model,) = service.client.models()
    assert (model["family"], model["system"], model["license"]) == ("nova", "random-continuous", "Apache-2.0")
    assert model["image_size"] == [SIDE, SIDE] and model["orders"][0] == "random"
    assert "github.com/baaivision/NOVA" in model["source"]

    request: dict[str, Any] = {"prompt": "a red apple", "seed": 5, "num_inference_steps": 12, "diffusion_steps": 8}
    expected = service.client.generate(**request)[0].data
    assert service.client.generate(**request)[0].data == expected
    whole = pixels(expected)
    assert whole.size == (SIDE, SIDE)

    def asked(**changes: Any) -> httpx.Response:
        url = f"{service.settings.base_url}/v1/images/generations"
        return httpx.post(url, json={**request, **changes}, timeout=WAIT_S)

    def drawn(**changes: Any) -> int:
        """Largest difference from the image of `request`."""
        answer = asked(**changes)
        assert answer.status_code == 200, answer.text
        return difference(pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])), whole)

    assert min(drawn(seed=6), drawn(prompt="blue"), drawn(negative_prompt="blue")) > ROUNDING
    assert drawn(size=f"{SIDE}x{SIDE}") == 0
    refused = asked(size="512x512")
    assert refused.status_code == 400 and f"{SIDE}x{SIDE}" in refused.json()["error"]["message"]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(drawn, prompt="blue", seed=i, num_inference_steps=20 + i) for i in range(3)]
        assert drawn() <= ROUNDING
        assert min(other.result() for other in others) > ROUNDING

    stream = events(service, {**request, "partial_images": 2})
    previews = [pixels(base64.b64decode(data["b64_json"])) for name, data in stream if name.endswith("partial_image")]
    assert previews and all(difference(preview, whole) > ROUNDING for preview in previews)

    hole = whole.convert("RGBA")
    hole.paste((0, 0, 0, 0), (SIDE // 2, SIDE // 2, SIDE, SIDE))
    file = io.BytesIO()
    hole.save(file, "PNG")
    one, two = (service.client.edit("blue", file.getvalue(), seed=1, feather=0)[0].data for _ in range(2))
    assert one == two
    kept = (0, 0, SIDE, SIDE // 2)
    assert difference(pixels(one).crop(kept), whole.crop(kept)) == 0 and difference(pixels(one), whole) > ROUNDING

    request |= {"num_inference_steps": GRID**2, "diffusion_steps": 100}
    whole = pixels(service.client.generate(**request)[0].data)
    job = service.client.submit(**request)
    until(lambda: service.client.job(job["id"])["progress"]["step"] >= 24, seconds=60)
    service.workers[0].kill()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=WAIT_S)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert difference(pixels(service.client.image(job["id"])), whole) == 0
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows")
