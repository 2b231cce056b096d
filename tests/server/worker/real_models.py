"""Steps that every test of real weights behind a service has in common."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageChops

from server.client import FluidClient
from server.settings import Settings
from tests.server.harness import Service, until
from tests.server.worker.test_snapshots import metric

WAIT_S = 240
ROUNDING = 3  # of 255; a resumed raster row computes its keys and values in another batch


def pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two values."""
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def serve_checkpoint(new_service: Callable[..., Service], folder: Path, **changes: object) -> Service:
    """A service with one worker that has loaded the checkpoint, and a client that waits long enough."""
    service = new_service(engine=Settings().engine, checkpoint=str(folder), threads=1, workers=0, **changes)
    service.add_worker()
    service.client.wait_ready(timeout_s=WAIT_S)
    service.client.close()
    service.client = FluidClient(service.settings.base_url, timeout_s=WAIT_S, max_retries=0)
    return service


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


def previews_of(service: Service, request: dict[str, Any], whole: Image.Image) -> list[Image.Image]:
    """The previews of a streamed generation, of which none is the finished image."""
    stream = events(service, {**request, "partial_images": 2})
    assert stream[-1][0].endswith("completed")
    found = [pixels(base64.b64decode(data["b64_json"])) for name, data in stream if name.endswith("partial_image")]
    assert found and all(difference(preview, whole) > 0 for preview in found)
    return found


def assert_edited(
    service: Service, whole: Image.Image, hole: tuple[int, int, int, int], prompt: str, **more: int
) -> None:
    """An edit of the hole is reproducible, changes the image, and keeps all that is above the hole."""
    source = whole.convert("RGBA")
    source.paste((0, 0, 0, 0), hole)
    file = io.BytesIO()
    source.save(file, "PNG")
    one, two = (service.client.edit(prompt, file.getvalue(), seed=1, feather=0, **more)[0].data for _ in range(2))
    assert one == two
    kept = (0, 0, whole.width, hole[1])
    assert difference(pixels(one).crop(kept), whole.crop(kept)) == 0 and difference(pixels(one), whole) > ROUNDING


def image_after_a_crash(service: Service, request: dict[str, Any], step: int) -> Image.Image:
    """The image of a job whose worker is killed after `step`, and that another one resumes."""
    job = service.client.submit(**request)
    until(lambda: service.client.job(job["id"])["progress"]["step"] >= step)
    service.workers[0].kill()
    service.add_worker()
    done = service.client.wait(job["id"], timeout_s=WAIT_S)
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    until(lambda: metric(service, "fluid_resumed_rows_total") == 1, what="the count of resumed rows")
    return pixels(service.client.image(job["id"]))
