"""Edits and variations through a real service, with the official client and with plain HTTP."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis
from PIL import Image, ImageDraw

from server.client import FluidClient
from server.gateway.app import create_app
from server.images.codec import encode, read_metadata
from tests.server.harness import Hold, Service, until
from tests.server.inprocess import served

SIZE = (32, 32)
HOLE = (5, 6, 21, 18)  # left, upper, right, lower: cuts through cells of 8 x 8


def png(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(size: tuple[int, int] = SIZE) -> Image.Image:
    """An image whose neighbouring pixels all differ."""
    across, down = size
    coordinates = ((x, y) for y in range(down) for x in range(across))
    return Image.frombytes("RGB", size, bytes((x * 7 + y * k) % 256 for x, y in coordinates for k in (3, 5, 11)))


def mask(size: tuple[int, int] = SIZE, hole: tuple[int, int, int, int] = HOLE) -> Image.Image:
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    ImageDraw.Draw(image).rectangle((hole[0], hole[1], hole[2] - 1, hole[3] - 1), fill=(0, 0, 0, 0))
    return image


def inside(x: int, y: int) -> bool:
    return HOLE[0] <= x < HOLE[2] and HOLE[1] <= y < HOLE[3]


def decode(answer: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).convert("RGB")


def changed_pixels(one: Image.Image, other: Image.Image) -> set[tuple[int, int]]:
    return {(x, y) for x in range(SIZE[0]) for y in range(SIZE[1]) if one.getpixel((x, y)) != other.getpixel((x, y))}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as made:
        yield made


def test_an_edit_with_the_official_client_changes_only_the_hole(client: openai.OpenAI) -> None:
    """The fake engine changes every given pixel by one, as a lossy tokenizer would. Pixels outside the mask must be the
    originals all the same, even in cells that the mask cuts through."""
    answer = client.images.edit(
        image=png(gradient()), mask=png(mask()), prompt="a cat", model="fake", size="32x32",
        extra_body={"seed": 4, "num_inference_steps": 3, "feather": 0, "guidance_interval": [0.0, 0.5]},
    )  # fmt: skip
    different = changed_pixels(decode(answer), gradient())
    assert different
    assert all(inside(x, y) for x, y in different)
    assert len(different) > 0.9 * (HOLE[2] - HOLE[0]) * (HOLE[3] - HOLE[1])


def test_an_edit_is_reproducible_and_its_file_holds_the_recipe(client: openai.OpenAI) -> None:
    """The same seed gives the same bytes, and the metadata says what was requested."""

    def ask(seed: int) -> bytes:
        answer = client.images.edit(
            image=("in.png", png(gradient())), mask=png(mask()), prompt="a cat", extra_body={"seed": seed}
        )
        assert answer.data is not None
        return base64.b64decode(answer.data[0].b64_json or "")

    assert ask(4) == ask(4) != ask(5)
    recipe = read_metadata(ask(4)) or {}
    assert recipe["edit"]["feather"] == 2
    assert (recipe["prompt"], recipe["seed"], len(recipe["edit"]["sha256"])) == ("a cat", 4, 64)


def test_feathering_stays_inside_the_mask(client: openai.OpenAI) -> None:
    """A soft edge outside the mask would change pixels that must stay."""
    body = {"image": png(gradient()), "mask": png(mask()), "prompt": "a cat"}
    hard, soft = (decode(client.images.edit(**body, extra_body={"seed": 1, "feather": f})) for f in (0, 4))
    differences = changed_pixels(hard, soft)
    assert differences
    assert all(inside(x, y) for x, y in differences | changed_pixels(soft, gradient()))
    assert (13, 12) not in differences  # deep inside


def test_a_transparent_image_is_its_own_mask(client: openai.OpenAI) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(mask().getchannel("A"))
    answer = client.images.edit(image=png(image), prompt="a cat", extra_body={"feather": 0})
    assert all(inside(x, y) for x, y in changed_pixels(decode(answer), gradient()))


def test_an_edit_without_a_mask_redraws_the_whole_image(client: openai.OpenAI) -> None:
    """What Open WebUI sends was a 400."""
    answer = client.images.edit(image=png(gradient()), prompt="a cat", extra_body={"seed": 4})
    assert len(changed_pixels(decode(answer), gradient())) > 0.9 * SIZE[0] * SIZE[1]
    assert answer.model_extra is not None
    assert "whole image was generated again" in answer.model_extra["warnings"][0]


def test_a_larger_image_is_scaled_with_a_warning(http: httpx.Client) -> None:
    """OpenAI's users send 1024x1024 to any model; one that generates smaller images must say what it did."""
    files = {"image": png(gradient((96, 96))), "mask": png(mask((96, 96), (20, 20, 60, 60)))}
    answer = http.post("/v1/images/edits", data={"prompt": "a cat"}, files=files).json()
    assert "scaled from 96x96 to 32x32" in answer["warnings"][0]
    assert answer["size"] == "32x32"


@pytest.mark.parametrize("route", ["edits", "variations"])
def test_a_file_response_carries_the_scaling_warning(http: httpx.Client, route: str) -> None:
    """Accept: image/* used to drop it. Headers stay short and ASCII even when a warning quotes a long prompt."""
    prompt = "eine Blüte " * 30
    image = encode(gradient((96, 96)).tobytes(), (96, 96), "png", 90, {"prompt": prompt})
    files = {"image": image} | ({"mask": png(mask((96, 96), (20, 20, 60, 60)))} if route == "edits" else {})
    data = {"prompt": "a cat"} if route == "edits" else {}
    answer = http.post(f"/v1/images/{route}", data=data, files=files, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    warnings = json.loads(answer.headers["x-warnings"])
    assert "scaled from 96x96 to 32x32" in warnings[0]
    if route == "variations":
        assert "eine Blüte" in warnings[1] and len(warnings[1]) == 200 and warnings[1].endswith("…")


def test_a_small_hole_takes_no_more_steps_than_tokens(http: httpx.Client) -> None:
    """The preset has 8 steps; a hole in two cells has two tokens, and each step generates at least one."""
    files = {"image": png(gradient()), "mask": png(mask(hole=(9, 9, 20, 12)))}
    data = {"prompt": "a cat", "num_inference_steps": "5"}
    answer = http.post("/v1/images/edits", data=data, files=files, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    assert (read_metadata(answer.content) or {})["num_inference_steps"] == 2
    warnings = http.post("/v1/images/edits", data=data, files=files).json()["warnings"]
    assert warnings == ["'num_inference_steps' was reduced to 2, the number of tokens to generate."]


@pytest.mark.parametrize("route", ["edits", "variations"])
def test_the_accept_header_selects_the_format(http: httpx.Client, route: str) -> None:
    """As for generations, a request that prefers image/webp used to get a PNG."""
    files = {"image": png(gradient())} | ({"mask": png(mask())} if route == "edits" else {})
    answer = http.post(
        f"/v1/images/{route}", data={"prompt": "a cat"}, files=files, headers={"Accept": "image/webp, image/png;q=0.5"}
    )
    assert answer.headers["content-type"] == "image/webp", answer.text
    assert Image.open(io.BytesIO(answer.content)).format == "WEBP"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client still offers it
@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_a_variation_takes_its_prompt_from_the_image(client: openai.OpenAI, format: str) -> None:
    """OpenAI's variations have no prompt; images generated here carry theirs in their metadata."""
    image = encode(gradient().tobytes(), SIZE, format, 90, {"prompt": "a cat, plain style"})
    answer = client.images.create_variation(image=("in", image), n=2, extra_body={"seed": 3, "keep": 0.25})
    assert answer.data is not None
    files = [base64.b64decode(each.b64_json or "") for each in answer.data]
    recipes = [read_metadata(data) or {} for data in files]
    assert [recipe["prompt"] for recipe in recipes] == ["a cat, plain style"] * 2
    assert [recipe["seed"] for recipe in recipes] == [3, 4]
    assert recipes[0]["variation"]["kept_tokens"] == 4


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_variation_without_any_prompt_is_guided_by_the_image_alone(client: openai.OpenAI) -> None:
    """It is the default request of OpenAI's clients, and was a 400."""
    answer = client.images.create_variation(image=png(gradient()))
    assert answer.data is not None and answer.data[0].b64_json
    assert "only the image guides" in str((answer.model_extra or {})["warnings"])


def test_an_edit_survives_the_death_of_its_worker(new_service: Callable[..., Service], hold: Hold) -> None:
    """The source image stays in Redis until the job ends, so the next worker finds it; then it is deleted."""
    service = new_service(workers=1, snapshot_steps=2)
    files = {"image": png(gradient()), "mask": png(mask(hole=(0, 0, 32, 16)))}
    responses: list[httpx.Response] = []

    def ask() -> None:
        url = f"{service.settings.base_url}/v1/images/edits"
        responses.append(httpx.post(url, data={"prompt": hold.prompt(), "seed": "5"}, files=files))

    with redis.Redis.from_url(service.settings.redis_url) as store:
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: list(store.scan_iter(f"{{{service.settings.namespace}}}:resume:*")), what="a snapshot")
        [key] = store.scan_iter(f"{{{service.settings.namespace}}}:input:*")
        assert store.ttl(key) == -1  # as long as the job lives
        service.workers[0].kill()
        hold.release()
        service.add_worker()
        thread.join(60)
        assert responses[0].status_code == 200, responses[0].text
        service.client.wait_ready(timeout_s=60)  # the gateway's view may be older than the new worker
        ask()
        assert responses[1].json()["data"] == responses[0].json()["data"]
        assert not list(store.scan_iter(f"{{{service.settings.namespace}}}:input:*"))


def test_an_idempotency_key_covers_the_uploaded_image(http: httpx.Client) -> None:
    """The same form is the same job; with another mask it is a different request, and a 422."""
    headers, data = {"Idempotency-Key": "edit-1"}, {"prompt": "a cat"}
    files = {"image": png(gradient()), "mask": png(mask())}
    one, two = (http.post("/v1/images/edits", data=data, files=files, headers=headers).json() for _ in range(2))
    assert one["job_id"] == two["job_id"]
    other = files | {"mask": png(mask(hole=(0, 0, 8, 8)))}
    assert http.post("/v1/images/edits", data=data, files=other, headers=headers).status_code == 422


def test_an_edit_streams_to_the_official_client(client: openai.OpenAI, hold: Hold) -> None:
    """The unmodified client reads image_edit.* events; previews keep the original outside the hole."""
    stream = client.images.edit(
        image=("a.png", png(gradient())), mask=("m.png", png(mask())), prompt=hold.prompt(step=5), stream=True,
        partial_images=2, extra_body={"feather": 0, "num_inference_steps": 6},
    )  # fmt: skip
    events = []
    for event in stream:
        events.append(event)
        if len(events) == 2:
            hold.release()
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    for event in events:
        image = Image.open(io.BytesIO(base64.b64decode(event.b64_json))).convert("RGB")
        assert all(inside(x, y) for x, y in changed_pixels(image, gradient()))


def test_variations_have_no_stream(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/images/variations", files={"image": ("a.png", png(gradient()))}, data={"prompt": "a cat", "stream": "true"}
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream"


def test_uploads_need_no_temporary_folder(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a read-only root or a full folder, an edit of more than 1 MiB was a 500, and a file a parsing error."""
    monkeypatch.setattr("tempfile.tempdir", "/proc/no-such-folder")
    noise = png(Image.effect_noise((1200, 1200), 90).convert("RGB"))
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}\n'
    assert len(noise) > 1 << 20
    with served(create_app(service.settings)) as port, FluidClient(f"http://127.0.0.1:{port}") as client:
        assert client.edit("a cat", noise, png(mask((1200, 1200), hole=(100, 100, 900, 900))))
        assert client.submit_batch(line + b" " * (2 << 20) + b"\n")["id"]
