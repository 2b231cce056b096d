"""NOVA over HTTP: a folder in the published layout, `fluid import`, real processes, and what any caller may ask."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli.main import main
from tests.model.nova_restated import FLOW, HEADS, random_folder
from tests.server.harness import Service
from tests.server.worker.real_models import (
    ROUNDING,
    WAIT_S,
    assert_edited,
    difference,
    image_after_a_crash,
    pixels,
    previews_of,
    serve_checkpoint,
)

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
    service = serve_checkpoint(new_service, tmp_path / "served", max_rows=4, dtype="float32", snapshot_steps=4)
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

    assert all(difference(preview, whole) > ROUNDING for preview in previews_of(service, request, whole))
    assert_edited(service, whole, (SIDE // 2, SIDE // 2, SIDE, SIDE), "blue")

    request |= {"num_inference_steps": GRID**2, "diffusion_steps": 100}
    whole = pixels(service.client.generate(**request)[0].data)
    assert difference(image_after_a_crash(service, request, step=24), whole) == 0
