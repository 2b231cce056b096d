"""The API reference as HTML: escaping, and parts of OpenAPI that this service uses rarely or not yet."""

from __future__ import annotations

from typing import Any

import pytest

from server.gateway.app import create_app
from server.gateway.pages.api_reference import api_reference
from server.settings import Settings

HOSTILE = '<script>alert(1)</script> `<b>` [x](/a"b) [y](javascript:alert) & "\''


def document(**operation: Any) -> dict[str, Any]:
    return {
        "info": {"title": "T", "version": "1", "description": "d"},
        "paths": {"/v1/things/{id}": {"get": {"operationId": "get_thing", "responses": {}} | operation}},
        "components": {"schemas": {"Thing": {"type": "object", "properties": {"a": {"type": "string"}}}}},
    }


def test_texts_of_the_document_are_escaped() -> None:
    """Prompts and model names may become examples one day; none of them may become markup."""
    html = api_reference(
        document(
            description=HOSTILE,
            responses={"200": {"description": HOSTILE}},
            parameters=[{"name": HOSTILE, "in": "query", "schema": {"enum": [HOSTILE], "description": HOSTILE}}],
            requestBody={"content": {"application/json": {"schema": {}, "example": HOSTILE}}},
        )
    ).html
    assert "<script" not in html and "<b>" not in html and "javascript:" not in html.replace("(javascript:", "")
    assert "<code>&lt;b&gt;</code>" in html and '<a href="/a&quot;b">x</a>' in html


def test_an_operation_without_tags_or_descriptions_is_shown() -> None:
    html = api_reference(document()).html
    assert 'id="get_thing"' in html and "<h2>other</h2>" in html


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1.0, "maximum": 10.0}, "integer, ≥ 1, ≤ 10"),
        ({"type": "integer", "maximum": 9.223372036854776e18}, "integer, ≤ 2⁶³ − 1"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, "number, &gt; 0"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "integer"}]}, "<code>a</code> | <code>b</code> or integer"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}, 'list of <a href="#Thing">Thing</a>'),
        ({"const": "job"}, "<code>job</code>"),
        ({"type": "string", "format": "binary"}, "<td>file</td>"),
        ({}, "<td>any</td>"),
    ],
)
def test_types_are_put_into_words(schema: dict[str, Any], words: str) -> None:
    parameter = {"name": "p", "in": "query", "required": False, "schema": schema}
    assert words in api_reference(document(parameters=[parameter])).html


def test_the_page_of_this_service_runs_no_script() -> None:
    """So its policy can forbid them all."""
    page = api_reference(create_app(Settings()).openapi())
    assert "script-src 'none'" in page.policy and "<script" not in page.html
    assert len(page.html) < 300_000
