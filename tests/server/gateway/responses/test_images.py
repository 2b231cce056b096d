"""Response formats of an image: JSON, a URL, or a file in the accepted format; and the headers beside it."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.harness import Service

GENERATE = "/v1/images/generations"


@pytest.fixture
def http(service: Service) -> Any:
    with httpx.Client(base_url=service.settings.base_url) as client:
        yield client


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_accept_image_returns_the_file(http: httpx.Client, format: str) -> None:
    """`curl -H 'Accept: image/*' -o` must get bytes, with seed and timing in the headers."""
    answer = http.post(
        GENERATE,
        json={
            "prompt": "a cat",
            "seed": 3,
            "output_format": format,
            "output_compression": 100 if format == "png" else 80,
        },
        headers={"Accept": "image/*"},
    )
    assert answer.headers["content-type"] == f"image/{format}"
    assert answer.headers["seed"] == "3"
    for name in ("request-id", "queue-time-ms", "inference-time-ms", "encode-time-ms", "batch-size", "kernels"):
        assert f"x-{name}" in answer.headers
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == (format.upper(), (32, 32))


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("image/webp", "webp"),
        ("IMAGE/JPEG; q=0.9", "jpeg"),
        ("image/*", "png"),
        ("image/gif, image/webp", "webp"),
        ("image/webp;q=0.5, image/jpeg;q=0.8, image/*;q=0.1", "jpeg"),
        ("image/*, image/webp", "webp"),
        ("image/jpeg, image/webp", "jpeg"),
        ("image/png;q=0, image/*, application/json;q=0", "webp"),
    ],
)
def test_the_accept_header_selects_the_format(http: httpx.Client, accept: str, format: str) -> None:
    """Accepting only image/webp used to return a PNG."""
    answer = http.post(GENERATE, json={"prompt": "a cat", "quality": "low"}, headers={"Accept": accept})
    assert answer.headers["content-type"] == f"image/{format}", answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == format.upper()


@pytest.mark.parametrize(
    ("accept", "body", "message"),
    [
        ("image/gif", {}, "image/png, image/webp, image/jpeg"),
        ("image/gif, image/*;q=0", {"output_format": "png"}, "image/png, image/webp, image/jpeg"),
        ("image/webp", {"output_format": "jpeg"}, "Accept image/jpeg, or set 'output_format' to webp"),
    ],
)
def test_an_image_type_that_cannot_be_served_is_a_406(
    http: httpx.Client, accept: str, body: dict[str, Any], message: str
) -> None:
    """A PNG sent as a GIF, or a JPEG sent to a client that reads only WebP, would fail where the cause is hidden."""
    answer = http.post(GENERATE, json={"prompt": "a cat", **body}, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "not_acceptable")
    assert message in answer.json()["error"]["message"]


def test_warnings_reach_clients_without_json(http: httpx.Client) -> None:
    """Files and streams used to drop them, so a parameter without effect was ignored silently."""
    body = {"prompt": "a cat", "quality": "low", "style": "vivid"}
    warnings = ["'style' has no effect here."]
    plain = http.post(GENERATE, json=body)
    assert plain.json()["warnings"] == json.loads(plain.headers["x-warnings"]) == warnings
    file = http.post(GENERATE, json=body, headers={"Accept": "image/png"})
    assert json.loads(file.headers["x-warnings"]) == warnings
    stream = http.post(GENERATE, json=body | {"stream": True})
    last = json.loads(stream.text.strip().rsplit("data: ", 1)[1])
    assert last["type"].endswith("completed") and last["warnings"] == warnings
    assert json.loads(stream.headers["x-warnings"]) == warnings


def test_every_response_names_its_job(http: httpx.Client) -> None:
    """JSON used to lack the x-job-id that docs/api.md promises for all three formats."""
    for more, accept in (({}, "*/*"), ({"stream": True}, "*/*"), ({}, "image/png")):
        answer = http.post(GENERATE, json={"prompt": "x", "quality": "low", **more}, headers={"Accept": accept})
        assert http.get(f"/v1/jobs/{answer.headers['x-job-id']}").json()["status"] == "succeeded"


def test_pages_from_other_origins_can_read_our_headers(new_service: Callable[..., Service]) -> None:
    """Timings, kernels and retry-after-ms used to be sent but hidden from the scripts that need them."""
    service = new_service(cors_origins="https://app.example")
    answer = httpx.post(
        service.settings.base_url + GENERATE,
        json={"prompt": "x", "quality": "low", "style": "y"},
        headers={"Origin": "https://app.example", "Accept": "image/png"},
    )
    exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
    ours = {name for name in answer.headers if name.startswith("x-")} - {"x-content-type-options", "x-frame-options"}
    assert ours | {"retry-after", "retry-after-ms"} <= exposed, ours - exposed


@pytest.mark.parametrize("route", [GENERATE, "/v1/jobs"])
def test_png_rejects_output_compression(http: httpx.Client, route: str) -> None:
    """It used to be ignored silently: a request for a small file got a large one without a reason."""
    body = {"prompt": "a cat", "quality": "low"}
    for more in ({}, {"output_format": "png"}):
        rejected = http.post(route, json=body | more | {"output_compression": 50})
        assert (rejected.status_code, rejected.json()["error"]["param"]) == (400, "output_compression")
        assert http.post(route, json=body | more | {"output_compression": 100}).is_success
    by_accept = http.post(GENERATE, json=body | {"output_compression": 50}, headers={"Accept": "image/webp"})
    assert by_accept.headers["content-type"] == "image/webp"


def test_accept_image_with_several_images_is_rejected(http: httpx.Client) -> None:
    """One body holds one file, and dropping the others silently would be worse."""
    answer = http.post(GENERATE, json={"prompt": "x", "n": 2}, headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_a_url_leads_to_the_file(http: httpx.Client) -> None:
    """With response_format=url the URL must be absolute (it used to be a bare path, which other clients could not open)
    and return the bytes that the job describes."""
    body = http.post(GENERATE, json={"prompt": "a cat", "response_format": "url"}).json()
    assert body["data"][0]["b64_json"] is None
    image = httpx.get(body["data"][0]["url"])
    assert image.headers["content-type"] == "image/png"
    output = http.get(f"/v1/jobs/{body['job_id']}").json()["output"][0]
    assert hashlib.sha256(image.content).hexdigest() == output["sha256"]


def test_urls_start_with_the_public_address(http: httpx.Client, new_service: Callable[..., Service]) -> None:
    """The public address is in the Host header, or in FLUID_PUBLIC_URL; URLs in streams follow it too."""
    body = {"prompt": "a cat", "quality": "low", "response_format": "url"}
    by_host = http.post(GENERATE, json=body, headers={"Host": "images.localhost:81"}).json()
    assert by_host["data"][0]["url"] == f"http://images.localhost:81/v1/jobs/{by_host['job_id']}/images/0"
    url = new_service(public_url="https://example.com/draw/").settings.base_url + GENERATE
    link = httpx.post(url, json=body).json()["data"][0]["url"]
    assert link.startswith("https://example.com/draw/v1/jobs/")
    assert f'"url":"{link.split("job_")[0]}' in httpx.post(url, json=body | {"stream": True}).text
