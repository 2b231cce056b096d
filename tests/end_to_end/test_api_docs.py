"""docs/api.md: its code runs, and it documents every route, request field and error."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

import pytest

from server.errors import RequestError
from server.gateway.app import create_app
from server.gateway.webhooks import sign
from server.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
ADDRESS = "http://127.0.0.1:8000"


def test_the_python_blocks_run_from_top_to_bottom(live: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {"__name__": "api"}
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block.replace(ADDRESS, live), f"docs/api.md, block {number}", "exec"), known)
    saved = {path.name for path in tmp_path.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert {"rocket.png", "apple.png", "preview-0.png", "variation-1.png", "castle-1.png", "a.png"} <= saved
    assert known["client"].close() is None  # type: ignore[attr-defined]


def test_the_example_verifies_webhook_signatures() -> None:
    known: dict[str, object] = {}
    exec(next(block for block in BLOCKS if "def is_ours" in block), known)
    key, now = bytes(range(32)), int(time.time())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": sign(key, "msg_1", now, b"{}"),
    }
    secret = "whsec_" + base64.b64encode(key).decode()
    is_ours = known["is_ours"]
    assert callable(is_ours)
    assert is_ours(secret, headers, b"{}")
    assert not is_ours(secret, headers, b"{ }")
    old = now - 3600
    stale = {"webhook-timestamp": str(old), "webhook-signature": sign(key, "msg_1", old, b"{}")}
    assert not is_ours(secret, headers | stale, b"{}")


DOCUMENT = create_app(Settings()).openapi()


def test_every_route_is_documented() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            found = f"`{method.upper()} {path}`" in PAGE or f"`{path}`" in PAGE or f"`{method.upper()} {path}?" in PAGE
            assert found, f"{method.upper()} {path}"


def test_every_request_field_is_documented() -> None:
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                name = body["schema"].get("$ref", "").rsplit("/", 1)[-1]
                schema = DOCUMENT["components"]["schemas"][name] if name else body["schema"]
                missing = [field for field in schema["properties"] if f"`{field}" not in PAGE]
                assert not missing, (operation["operationId"], missing)


def test_every_error_is_documented_with_its_status(request_errors: set[type[RequestError]]) -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    for error in request_errors:
        assert any(f"{error.status}" in row.split("|")[1] and f"`{error.code}`" in row for row in rows), error


def test_links_within_the_page_have_targets() -> None:
    titles = {re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", PAGE)) <= titles
