"""The default requests of common clients draw an image, and `warnings` says what they were mapped to."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.errors import InvalidRequest, SettingError, UnknownModel
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.launcher.embedded_valkey import EmbeddedValkey
from server.model_info import ModelInfo
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from tests.clients.bodies import BODIES, MAPPED
from tests.clients.python_clients import png
from tests.server.conftest import fake_settings
from tests.server.harness import Service, running_service

SLASHED = {"model_aliases": f"{MAPPED['model_aliases']},org/fake=fake"}
INFO = ModelInfo.from_mapping(FakeEngine(1, 0).info())
SETTINGS = Settings(**MAPPED)  # type: ignore[arg-type]
MAPPING = ClientMapping.from_settings(SETTINGS)
#: (name, request) of every default request in tests/clients/bodies.json.
REQUESTS = [(f"{program} {call}", sent) for program, calls in BODIES.items() for call, sent in calls.items()]
JSON_BODIES = {name: sent["json"] for name, sent in REQUESTS if "json" in sent}
#: An older LangChain, and options of the Vercel AI SDK.
OPTIONS: dict[str, dict[str, Any]] = {
    "LangChain of 2025": {"prompt": "a cat", "n": 1, "size": "1024x1024", "model": "dall-e-2", "quality": "standard"},
    "Vercel AI SDK, options": {
        "model": "dall-e-3", "prompt": "a cat", "n": 1, "size": "1792x1024", "style": "vivid", "quality": "hd",
        "response_format": "b64_json",
    },
}  # fmt: skip


def resolved(body: dict[str, Any], mapping: ClientMapping = MAPPING) -> tuple[str, list[str]]:
    job, warnings = resolve(ImageRequest.model_validate(body), {INFO.id: INFO}, INFO.id, mapping)
    assert (job.model, job.width, job.height) == ("fake", 32, 32)
    return job.quality, warnings


@pytest.mark.parametrize("client", [*JSON_BODIES, *OPTIONS])
def test_default_requests_are_mapped_with_a_warning(client: str) -> None:
    """Each of them was a 400: for its model, its size or its quality."""
    body = (JSON_BODIES | OPTIONS)[client]
    quality, warnings = resolved(body)
    assert quality == {"hd": "high"}.get(str(body.get("quality")), "medium")
    told = [text.split()[0].strip("'") for text in warnings]
    assert told == [name for name in ("model", "size", "quality", "style") if body.get(name, "auto") != "auto"]


@pytest.mark.parametrize(
    ("body", "setting"),
    [({"model": "dall-e-3"}, "FLUID_MODEL_ALIASES"), ({"size": "1024x1024"}, "FLUID_SIZE_POLICY=nearest")],
)
def test_a_refusal_says_how_to_allow_it(body: dict[str, str], setting: str) -> None:
    with pytest.raises((InvalidRequest, UnknownModel), match=setting):
        resolved({"prompt": "a cat"} | body, ClientMapping())


def test_openais_qualities_need_no_setting() -> None:
    assert resolved({"prompt": "a cat", "quality": "standard"}, ClientMapping()) == (
        "medium",
        ["'quality' standard is medium here."],
    )
    assert resolved({"prompt": "a cat", "quality": "hd"}, ClientMapping())[0] == "high"


def test_a_model_wins_over_an_alias_of_the_same_name() -> None:
    assert resolved({"prompt": "a cat", "model": "fake"}, ClientMapping({"fake": "other"})) == ("medium", [])
    with pytest.raises(UnknownModel, match="an alias of other, is not served"):
        resolved({"prompt": "a cat", "model": "x"}, ClientMapping({"x": "other"}))


@pytest.mark.parametrize("text", ["dall-e-3", "=fake", "a=", "a=fake,a=other"])
def test_a_wrong_alias_stops_the_start(text: str) -> None:
    with pytest.raises(SettingError, match="FLUID_MODEL_ALIASES"):
        ClientMapping.from_settings(Settings(model_aliases=text))


@pytest.fixture(scope="module")
def mapped(valkey: EmbeddedValkey) -> Iterator[Service]:
    with running_service(replace(fake_settings(valkey), **MAPPED | SLASHED)) as running:  # type: ignore[arg-type]
        yield running


def send(service: Service, sent: dict[str, Any]) -> httpx.Response:
    url = service.settings.base_url + sent["path"]
    if "json" in sent:
        return httpx.post(url, json=sent["json"])
    files = [(name, ("square.png", png(), "image/png")) for name in sent["files"]]
    return httpx.post(url, data=sent["form"], files=files)


@pytest.mark.parametrize(("name", "sent"), REQUESTS)
def test_every_default_request_generates_an_image(name: str, sent: dict[str, Any], mapped: Service) -> None:
    """A variation without a prompt, as OpenAI's are, was a 400; a link broke the clients that ask for gpt-image-1."""
    answer = send(mapped, sent)
    assert answer.status_code == 200, answer.text
    body = sent.get("json") or sent["form"]
    if body.get("stream"):
        last = json.loads([line for line in answer.text.splitlines() if line.startswith("data: {")][-1][6:])
        assert last["b64_json"] and last["warnings"] == ["'model' gpt-image-1 is fake here."]
        return
    [image] = answer.json()["data"]
    linked = "response_format" not in body and not body.get("model", "").startswith("gpt-image")
    assert (image["b64_json"] is None, image["url"] is not None) == (linked, linked)
    if linked:
        assert httpx.get(image["url"]).headers["content-type"] == "image/png"
    told = [text.split()[0].strip("'") for text in answer.json()["warnings"]]
    mapped_names = [name for name in ("model", "size") if body.get(name, "auto") not in ("auto", "")]
    no_mask = ["Neither"] if sent["path"] == "/v1/images/edits" else []  # has transparency: all is generated again
    assert told == (no_mask + mapped_names if "prompt" in body else ["prompt"])


@pytest.mark.parametrize("alias", ["org/fake", "org%2Ffake"])
def test_a_model_is_found_by_a_name_with_slashes(alias: str, mapped: Service) -> None:
    """It was no route, so that clients, which ask for the model before a transparent image, could not use the name."""
    with httpx.Client(base_url=mapped.settings.base_url) as http:
        assert http.get(f"/v1/models/{alias}").json()["id"] == "fake"
        unknown = http.get(f"/v1/models/{alias}s")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        for slashed, path in (("/v1/models/", "/v1/models"), (f"/v1/models/{alias}/", "/v1/models/org/fake")):
            answer = http.get(slashed)
            assert (answer.status_code, answer.headers["location"]) == (307, f"{mapped.settings.base_url}{path}")
        counted = http.get("/metrics").text
        assert 'route="/v1/models/{model_id}"' in counted and ":path" not in counted


def test_aliases_are_known_to_jobs_and_models(mapped: Service) -> None:
    with httpx.Client(base_url=mapped.settings.base_url) as http:
        job = http.post("/v1/jobs", json=JSON_BODIES["python litellm_generate"]).json()
        assert job["warnings"] == ["'model' dall-e-3 is fake here."]
        assert http.get("/v1/models/dall-e-3").json()["id"] == "fake"
        assert http.get("/v1/models/dall-e-9").status_code == 404


@pytest.mark.parametrize(
    ("model", "stream", "expected"),
    [(None, False, "url"), ("dall-e-2", False, "url"), ("gpt-image-1.5", False, "b64_json"), (None, True, "b64_json")],
)
def test_default_response_format(model: str | None, stream: bool, expected: str) -> None:
    assert MAPPING.default_response_format(model, stream=stream) == expected
    assert ClientMapping().default_response_format(model, stream=stream) == "b64_json"
