"""What the gateway promises of itself: /openapi.json, the size of bodies, and headers that the playground needs."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.gateway.middleware.body_limit import MAX_BODY_BYTES
from server.gateway.middleware.security_headers import SECURITY_HEADERS
from server.gateway.schemas.images import ImageRequest
from tests.server.harness import Service

GENERATE = "/v1/images/generations"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url, timeout=30) as client:
        yield client


@pytest.fixture
def contract(http: httpx.Client) -> dict[str, Any]:
    return dict(http.get("/openapi.json").json())


def _operations(contract: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_contract_lists_no_answer_that_never_comes(contract: dict[str, Any]) -> None:
    """FastAPI adds its own 422 to every route, in a shape that this service never sends."""
    answers = [operation["responses"].get("422", {}) for _, operation in _operations(contract)]
    assert not [answer for answer in answers if "HTTPValidationError" in str(answer)]
    assert "HTTPValidationError" not in contract["components"]["schemas"]


def test_every_documented_error_has_the_one_shape(contract: dict[str, Any]) -> None:
    """Generated clients parse errors by this; readiness alone answers 503 in its own words."""
    for name, operation in _operations(contract):
        assert "default" in operation["responses"], name
        for status, answer in operation["responses"].items():
            if (status == "default" or status >= "400") and "/health/" not in name:
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody"), (name, status)
    for path in (GENERATE, "/v1/jobs"):
        assert {"400", "413", "429", "503"} <= set(contract["paths"][path]["post"]["responses"])
    job = contract["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]
    assert {"200", "202", "404", "410"} <= set(job)


@pytest.mark.parametrize("path", [GENERATE, "/v1/jobs"])
def test_the_examples_are_valid_requests(contract: dict[str, Any], path: str) -> None:
    """People press "try it out" on them."""
    body = contract["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) >= 3
    for example in body["examples"].values():
        assert example["summary"]
        ImageRequest.model_validate(example["value"])


def _chunks(size: int) -> Iterator[bytes]:
    """Sent without a Content-Length."""
    for _ in range(size // 4096):
        yield b" " * 4096
    yield b" " * (size % 4096)


@pytest.mark.parametrize("streamed", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("path", [GENERATE, "/v1/jobs"])
def test_a_body_that_is_too_large_is_a_413(http: httpx.Client, path: str, streamed: bool) -> None:
    """Without a limit one request fills the gateway's memory; a chunked one announces no length to look at."""
    size = MAX_BODY_BYTES + 1
    content = _chunks(size) if streamed else b" " * size
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("body_too_large", "invalid_request_error")
    assert str(MAX_BODY_BYTES) in error["message"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("streamed", [False, True], ids=["content-length", "chunked"])
def test_a_body_at_the_limit_is_read(http: httpx.Client, streamed: bool) -> None:
    """Blanks around the JSON are legal, so this is a request like any other."""
    request = b'{"prompt": "x", "quality": "low"}'
    padding = MAX_BODY_BYTES - len(request)
    content = (part for part in (*_chunks(padding), request)) if streamed else b" " * padding + request
    answer = http.post(GENERATE, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_the_policy_of_the_playground_lets_its_own_script_run(http: httpx.Client) -> None:
    """The page has its script and style inside, and shows data: images; in browsers: tests/end_to_end."""
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    script = answer.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "img-src 'self' data: blob:" in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/health/live", "/metrics"])
def test_every_answer_has_the_safe_headers(http: httpx.Client, path: str) -> None:
    assert {k.lower(): v for k, v in SECURITY_HEADERS.items()}.items() <= dict(http.get(path).headers).items()
