"""The HTTP contract: /openapi.json, the limit on bodies, and security headers."""

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


def test_the_contract_lists_no_impossible_response(contract: dict[str, Any]) -> None:
    """FastAPI adds a 422 of its own to every route, in a format that this service never sends."""
    answers = [operation["responses"].get("422", {}) for _, operation in _operations(contract)]
    assert not [answer for answer in answers if "HTTPValidationError" in str(answer)]
    assert "HTTPValidationError" not in contract["components"]["schemas"]


def test_every_documented_error_has_the_same_schema(contract: dict[str, Any]) -> None:
    """Generated clients parse errors by it; only the 503 of readiness has another body."""
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
    """People send them unchanged with "try it out"."""
    body = contract["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert len(body["examples"]) >= 3
    for example in body["examples"].values():
        assert example["summary"]
        ImageRequest.model_validate(example["value"])


def _chunks(size: int) -> Iterator[bytes]:
    """A body that httpx sends chunked, without a Content-Length."""
    for _ in range(size // 4096):
        yield b" " * 4096
    yield b" " * (size % 4096)


@pytest.mark.parametrize("streamed", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("path", [GENERATE, "/v1/jobs"])
def test_a_body_that_is_too_large_is_a_413(http: httpx.Client, path: str, streamed: bool) -> None:
    """Without a limit, one request could fill the gateway's memory; a chunked one has no length to check up front."""
    size = MAX_BODY_BYTES + 1
    content = _chunks(size) if streamed else b" " * size
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("body_too_large", "invalid_request_error")
    assert str(MAX_BODY_BYTES) in error["message"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("streamed", [False, True], ids=["content-length", "chunked"])
def test_a_body_at_the_limit_is_accepted(http: httpx.Client, streamed: bool) -> None:
    """Whitespace around JSON is legal, so a padded request is valid."""
    request = b'{"prompt": "x", "quality": "low"}'
    padding = MAX_BODY_BYTES - len(request)
    content = (part for part in (*_chunks(padding), request)) if streamed else b" " * padding + request
    answer = http.post(GENERATE, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_the_playground_policy_allows_its_own_script(http: httpx.Client) -> None:
    """The page has an inline script and style and shows data: images; tests/end_to_end runs it in browsers."""
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    script = answer.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "img-src 'self' data: blob:" in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/health/live", "/metrics"])
def test_every_response_has_the_security_headers(http: httpx.Client, path: str) -> None:
    assert {k.lower(): v for k, v in SECURITY_HEADERS.items()}.items() <= dict(http.get(path).headers).items()
