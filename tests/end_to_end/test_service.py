"""The whole service from a client's side: shipped weights, a real queue, real processes, HTTP."""

from __future__ import annotations

import base64
import colorsys
import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from PIL import Image

from server.client import FluidClient
from server.images.codec import read_metadata


def _pixels(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _hue(image: Image.Image) -> float:
    """Median hue in degrees of the clearly coloured pixels."""
    hsv = [colorsys.rgb_to_hsv(r / 255, g / 255, b / 255) for r, g, b in image.get_flattened_data()]
    hues = sorted(h * 360 for h, s, v in hsv if s > 0.35 and v > 0.3)
    assert len(hues) > 200, "the image is nearly empty"
    return hues[len(hues) // 2]


def _difference(a: Image.Image, b: Image.Image) -> int:
    pairs = zip(a.tobytes(), b.tobytes(), strict=True)
    return max(abs(x - y) for x, y in pairs)


def _same(a: Image.Image, b: Image.Image) -> bool:
    """Equal but for rounding, which differs between CPUs: a PSNR of 40 dB. Other images of the prompt have 15."""
    squares = [(x - y) ** 2 for x, y in zip(a.tobytes(), b.tobytes(), strict=True)]
    return sum(squares) / len(squares) < 255**2 / 10**4


@pytest.mark.parametrize(
    ("prompt", "low", "high"),
    [
        ("a green heart, flat style", 80, 170),
        ("a blue heart, 3d style", 190, 250),
        ("a yellow heart, noto style", 30, 65),
        ("a carrot, twemoji style", 10, 50),
    ],
)
def test_the_image_has_the_colour_of_the_prompt(live: str, prompt: str, low: float, high: float) -> None:
    """The cheapest check that the prompt reaches the pixels: untrained or shuffled conditioning fails it."""
    with FluidClient(live) as client:
        (image,) = client.generate(prompt, seed=5)
    assert low <= _hue(_pixels(image.data)) <= high


def test_a_seed_gives_the_same_image_alone_and_in_a_batch(live: str) -> None:
    """Images do not depend on what else is decoded; docs/architecture.md says how far rounding may change pixels."""
    with FluidClient(live) as client:
        (alone,) = client.generate("a red apple, 3d style", seed=11)
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(client.generate, f"a {w}", seed=i) for i, w in enumerate(("cat", "rocket", "sun"))]
            (again,) = client.generate("a red apple, 3d style", seed=11)
            for other in others:
                other.result()
        three = client.generate("a red apple, 3d style", seed=9, n=3)
    assert _same(_pixels(alone.data), _pixels(again.data))
    assert [image.seed for image in three] == [9, 10, 11]  # image i uses seed + i
    assert _same(_pixels(alone.data), _pixels(three[2].data))
    assert _difference(_pixels(alone.data), _pixels(three[0].data)) > 10


def test_the_file_contains_the_recipe(live: str) -> None:
    response = httpx.post(
        f"{live}/v1/images/generations",
        json={"prompt": "a cactus, flat style", "seed": 3, "quality": "low"},
        headers={"Accept": "image/png"},
        timeout=120,
    )
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    assert response.headers["seed"] == "3" and float(response.headers["x-inference-time-ms"]) > 0
    assert response.headers["x-kernels"] in ("torch", "triton")
    assert _pixels(response.content).size == (128, 128)
    metadata = read_metadata(response.content)
    (model,) = httpx.get(f"{live}/v1/models").json()["data"]
    assert metadata["prompt"] == "a cactus, flat style" and metadata["seed"] == 3
    assert metadata["checkpoint_sha256"] == model["checkpoint_sha256"]


def test_models_lists_the_vocabulary(live: str) -> None:
    (model,) = httpx.get(f"{live}/v1/models").json()["data"]
    assert model["id"] == "atlas-128" and model["ready"] is True and model["image_size"] == [128, 128]
    assert {"cactus", "trumpet", "accordion"} <= set(model["vocabulary"])
    assert {"kitty", "mice"} <= set(model["synonyms"])
    assert set(model["styles"]) == {"3d", "noto", "twemoji", "flat", "blob", "emojione"}


def test_errors_name_the_limits_of_the_model(live: str) -> None:
    response = httpx.post(f"{live}/v1/images/generations", json={"prompt": "x", "num_inference_steps": 65})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "num_inference_steps" and "64" in error["message"]


def test_the_official_openai_client_works_unchanged(live: str) -> None:
    with openai.OpenAI(base_url=f"{live}/v1", api_key="unused") as client:
        response = client.images.generate(
            model="atlas-128", prompt="a rocket, flat style", size="128x128", quality="low"
        )
    assert response.data is not None and response.data[0].b64_json is not None
    assert _pixels(base64.b64decode(response.data[0].b64_json)).size == (128, 128)


def test_a_job_runs_from_submission_to_image_files(live: str) -> None:
    with FluidClient(live) as client:
        job = client.submit("a snowman, twemoji style", n=2, seed=1)
        done = client.wait(job["id"])
        assert done["status"] == "succeeded" and len(done["output"]) == 2
        assert _pixels(client.image(job["id"], 1)).size == (128, 128)
    scraped = httpx.get(f"{live}/metrics").text
    assert 'fluid_images_total{model="atlas-128"}' in scraped
