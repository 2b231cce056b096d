"""The HTTP contract: /openapi.json, the limit on bodies, and security headers."""

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.gateway.middleware.body_limit import MAX_BODY_BYTES, UPLOAD_LIMITS
from server.gateway.middleware.security_headers import SECURITY_HEADERS
from server.gateway.schemas.images import ImageRequest
from tests.server.harness import Service

GENERATE = "/v1/images/generations"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as client:
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


@pytest.mark.parametrize("path", UPLOAD_LIMITS)
def test_an_upload_that_is_too_large_names_its_own_limit(http: httpx.Client, path: str) -> None:
    """It named that of requests without files, a thirtieth of what the route takes."""
    size = UPLOAD_LIMITS[path] + 1
    kind = "application/json" if path == "/v1/responses" else "multipart/form-data; boundary=x"
    answer = http.post(path, content=_chunks(size), headers={"content-type": kind, "content-length": str(size)})
    assert answer.status_code == 413, answer.text
    assert f"larger than {size - 1} bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "none", "UTF-8", "iso-8859-1"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/images/edits"])
def test_a_form_in_another_charset_is_refused(http: httpx.Client, path: str, charset: str) -> None:
    """Names decoded as UTF-7 can hold half a surrogate pair, and the error that named one could not be sent: a 500."""
    part = b'--x\r\nContent-Disposition: form-data; name="a+2AE-b"\r\n\r\n1\r\n'
    content = part + part + b"--x--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = http.post(path, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert ("must be in UTF-8" in answer.json()["error"]["message"]) is (charset in ("utf-7", "unicode_escape", "none"))


@pytest.mark.parametrize("streamed", [False, True], ids=["content-length", "chunked"])
def test_a_body_at_the_limit_is_accepted(http: httpx.Client, streamed: bool) -> None:
    """Whitespace around JSON is legal, so a padded request is valid."""
    request = b'{"prompt": "x", "quality": "low"}'
    padding = MAX_BODY_BYTES - len(request)
    content = (part for part in (*_chunks(padding), request)) if streamed else b" " * padding + request
    answer = http.post(GENERATE, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_allow_their_own_scripts_and_styles_only(http: httpx.Client, path: str) -> None:
    """By hash, without unsafe-inline, and without any other host; tests/end_to_end runs both pages in a browser."""
    answer = http.get(path)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.S)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        assert policy[f"{tag}-src"].split() == ([f"'sha256-{digest}'" for digest in digests] or ["'none'"])
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?(?:https?:)?//""", answer.text)
    assert not re.findall(r"\bstyle=|\bon\w+=\"", answer.text), "the policy would ignore it"
    assert "/* scripts */" not in answer.text and "/* style.css */" not in answer.text


def test_the_api_reference_has_every_operation_and_object(http: httpx.Client, contract: dict[str, Any]) -> None:
    page = http.get("/docs").text
    for name, operation in _operations(contract):
        assert f'id="{operation["operationId"]}"' in page, name
    for name, schema in contract["components"]["schemas"].items():
        assert f'id="{name}"' in page
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in page, (name, field)
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(re.findall(r'id="(\w+)"', page))
    assert http.get("/redoc").status_code == 404


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/nothing", "/health/live", "/metrics"])
def test_every_response_has_the_security_headers(http: httpx.Client, path: str) -> None:
    assert {k.lower(): v for k, v in SECURITY_HEADERS.items()}.items() <= dict(http.get(path).headers).items()
