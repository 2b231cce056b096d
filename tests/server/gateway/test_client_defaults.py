"""The default requests of common clients draw an image, and `warnings` says what they were mapped to."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.errors import InvalidRequest, SettingError
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.model_info import ModelInfo
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from tests.server.harness import Service

INFO = ModelInfo.from_mapping(FakeEngine(1, 0).info())
SETTINGS = Settings(model_aliases="dall-e-2=fake, dall-e-3=fake,gpt-image-1=fake", size_policy="nearest")
MAPPING = ClientMapping.from_settings(SETTINGS)
#: What each client sends if only a prompt is given.
BODIES: dict[str, dict[str, Any]] = {
    "Open WebUI": {
        "model": "dall-e-2", "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json",
    },
    "Open WebUI, gpt-image-1": {"model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "1024x1024"},
    "LangChain DallEAPIWrapper": {
        "prompt": "a cat", "n": 1, "size": "1024x1024", "model": "dall-e-2", "quality": "standard",
    },
    "LiteLLM": {"model": "dall-e-3", "prompt": "a cat"},
    "Vercel AI SDK": {
        "model": "dall-e-3", "prompt": "a cat", "n": 1, "size": "1024x1024", "response_format": "b64_json",
    },
    "Vercel AI SDK, options": {
        "model": "dall-e-3", "prompt": "a cat", "n": 1, "size": "1792x1024", "style": "vivid", "quality": "hd",
        "response_format": "b64_json",
    },
}  # fmt: skip


def resolved(body: dict[str, Any], mapping: ClientMapping = MAPPING) -> tuple[str, list[str]]:
    job, warnings = resolve(ImageRequest.model_validate(body), {INFO.id: INFO}, INFO.id, mapping)
    assert (job.model, job.width, job.height) == ("fake", 32, 32)
    return job.quality, warnings


@pytest.mark.parametrize("client", BODIES)
def test_default_requests_are_mapped_with_a_warning(client: str) -> None:
    """Each of them was a 400: for its model, its size or its quality."""
    body = BODIES[client]
    quality, warnings = resolved(body)
    assert quality == {"hd": "high"}.get(str(body.get("quality")), "medium")
    told = [text.split()[0].strip("'") for text in warnings]
    assert told == [name for name in ("model", "size", "quality", "style") if name in body]


@pytest.mark.parametrize(
    ("body", "setting"),
    [({"model": "dall-e-3"}, "FLUID_MODEL_ALIASES"), ({"size": "1024x1024"}, "FLUID_SIZE_POLICY=nearest")],
)
def test_a_refusal_says_how_to_allow_it(body: dict[str, str], setting: str) -> None:
    with pytest.raises(InvalidRequest, match=setting):
        resolved({"prompt": "a cat"} | body, ClientMapping())


def test_openais_qualities_need_no_setting() -> None:
    assert resolved({"prompt": "a cat", "quality": "standard"}, ClientMapping()) == (
        "medium",
        ["'quality' standard is medium here."],
    )
    assert resolved({"prompt": "a cat", "quality": "hd"}, ClientMapping())[0] == "high"


def test_a_model_wins_over_an_alias_of_the_same_name() -> None:
    assert resolved({"prompt": "a cat", "model": "fake"}, ClientMapping({"fake": "other"})) == ("medium", [])
    with pytest.raises(InvalidRequest, match="an alias of other, is not served"):
        resolved({"prompt": "a cat", "model": "x"}, ClientMapping({"x": "other"}))


@pytest.mark.parametrize("text", ["dall-e-3", "=fake", "a=", "a=fake,a=other"])
def test_a_wrong_alias_stops_the_start(text: str) -> None:
    with pytest.raises(SettingError, match="FLUID_MODEL_ALIASES"):
        ClientMapping.from_settings(Settings(model_aliases=text))


def test_mapped_requests_over_http(new_service: Callable[..., Service]) -> None:
    """LangChain reads `url` from every response. Jobs and lookups of models know the aliases too."""
    changes = {"model_aliases": SETTINGS.model_aliases, "size_policy": "nearest", "response_format": "url"}
    with httpx.Client(base_url=new_service(**changes).settings.base_url, timeout=30) as http:
        answer = http.post("/v1/images/generations", json=BODIES["LangChain DallEAPIWrapper"]).json()
        assert answer["data"][0]["b64_json"] is None
        assert httpx.get(answer["data"][0]["url"]).headers["content-type"] == "image/png"
        assert [text.split()[0] for text in answer["warnings"]] == ["'model'", "'size'", "'quality'"]
        asked = http.post("/v1/images/generations", json=BODIES["Open WebUI"]).json()
        assert asked["data"][0]["b64_json"] and asked["size"] == "32x32"
        assert http.post("/v1/jobs", json=BODIES["LiteLLM"]).json()["warnings"] == ["'model' dall-e-3 is fake here."]
        assert http.get("/v1/models/dall-e-3").json()["id"] == "fake"
        assert http.get("/v1/models/dall-e-9").status_code == 404
