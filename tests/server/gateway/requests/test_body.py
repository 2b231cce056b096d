"""A body that cannot be read is a 400 that names the real cause."""

import difflib
import gzip
import json
from collections.abc import Iterator
from itertools import pairwise

import httpx
import pytest
from pydantic import ValidationError

from server.batch_format import index_lines, parse_line
from server.gateway.schemas.images import ImageRequest
from tests.server.harness import Service

JSON = "application/json"
GENERATE = "/v1/images/generations"
LONG = b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}"
BODY = b'{"prompt": "x"}'


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as client:
        yield client


@pytest.mark.parametrize(
    ("content", "headers", "says"),
    [
        ('{"prompt": "ein Käse"}'.encode("latin-1"), {"content-type": JSON}, "Latin-1"),
        ('{"prompt": "x"}'.encode("utf-16"), {"content-type": JSON}, "UTF-16"),
        (gzip.compress(BODY, mtime=0), {"content-type": JSON, "content-encoding": "gzip"}, "Content-Encoding: gzip"),
        (gzip.compress(BODY, mtime=0), {"content-type": JSON}, "compressed with gzip"),
        (BODY, {"content-type": JSON, "content-encoding": "br"}, "Content-Encoding: br"),
        (LONG, {"content-type": JSON}, "more than 4300 digits in 'seed'"),
        (b'{"guidance_interval": [-' + b"9" * 5000 + b"]}", {"content-type": JSON}, "in 'guidance_interval'"),
        (BODY, {}, "Content-Type is missing"),
        (BODY, {"content-type": "text/plain"}, "Content-Type is text/plain"),
        (BODY, {"content-type": "application/x-www-form-urlencoded"}, "application/x-www-form-urlencoded"),
        (b"[" * 100_000, {"content-type": JSON}, "nests more than 16"),
        (b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", {"content-type": JSON}, "nests more than 16"),
        (b"[]", {"content-type": JSON}, "not an array"),
        (b"null", {"content-type": JSON}, "not null"),
        (b"", {"content-type": JSON}, "empty"),
        (b'{"prompt": ', {"content-type": JSON}, "not valid JSON"),
    ],
)
@pytest.mark.parametrize("path", [GENERATE, "/v1/jobs", "/v1/batches"])
def test_the_cause_is_named(http: httpx.Client, path: str, content: bytes, headers: dict[str, str], says: str) -> None:
    """All of these were "There was an error parsing the body" or "must be a JSON object"."""
    answer = http.post(path, content=content, headers=headers)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_long_number_behind_much_space_is_refused_in_linear_time(http: httpx.Client) -> None:
    """The search for its name took quadratic time, in which Python runs nothing else: this body would have held up the
    gateway for minutes, and one line of a batch every gateway, again after each restart."""
    text = b'{"a":' + b" " * 500_000 + b'1, "b":' + b"9" * 5000 + b"}"
    answer = http.post(GENERATE, content=text, headers={"content-type": JSON})
    assert answer.status_code == 400 and "more than 4300 digits in 'b'" in answer.json()["error"]["message"]


def test_a_long_unknown_name_is_compared_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """difflib was given all of it, and took a list of as many numbers, and seconds."""
    compared: list[str] = []

    def compare(word: str, *_: object, **__: object) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    with pytest.raises(ValidationError, match="Unknown parameter"):
        ImageRequest.model_validate({"prompt" * 100_000: 1})
    assert [len(word) for word in compared] == [100]


def test_usual_content_types_are_accepted(http: httpx.Client) -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        answer = http.post(GENERATE, content=b"\xef\xbb\xbf" + BODY, headers={"content-type": kind})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/v1/files", "/v1/images/edits", "/v1/images/variations"])
def test_forms_name_the_cause_too(http: httpx.Client, path: str) -> None:
    for headers, says in (
        ({"content-type": JSON}, "must be multipart/form-data, not application/json"),
        ({}, "not without a content type"),
        ({"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}, "Content-Encoding: gzip"),
    ):
        answer = http.post(path, content=b"{}", headers=headers)
        assert (answer.status_code, says in answer.json()["error"]["message"]) == (400, True), answer.text


def test_a_long_number_fails_its_own_line_of_a_batch_alone() -> None:
    """It used to fail the whole file of up to 50,000 lines."""
    lines = [b'{"custom_id": "a", "body": ' + LONG + b"}", b'{"custom_id": "b", "body": ' + BODY + b"}"]
    data = b"\n".join(lines)
    bad, good = (parse_line(data[start:end].decode()) for start, end in pairwise(index_lines(data)))
    assert (bad.custom_id, bad.body) == ("a", {}) and "digits in 'seed'" in bad.error
    assert (good.custom_id, good.body, good.error) == ("b", json.loads(BODY), "")
