"""The API reference at /docs: a static page made from the OpenAPI document, without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from importlib import resources
from typing import Any

from server.gateway.pages.self_contained import Page

Json = Mapping[str, Any]
_GROUPS = {
    "images": "Images",
    "jobs": "Jobs",
    "batches": "Files and batches",
    "models": "Models",
    "health": "Health and metrics",
}
_LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
           "minLength": "characters ≥ {}", "maxLength": "characters ≤ {}"}  # fmt: skip
_ROUNDED = 2.0**53  # OpenAPI's limits are floats; a larger one is no longer exact


def api_reference(document: Json) -> Page:
    """Render the whole document. Every text in it is escaped; backquotes and links are the only markup."""
    style = (resources.files("server.gateway.pages") / "reference.css").read_text(encoding="utf-8")
    info, schemas = document["info"], document["components"]["schemas"]
    groups = _by_group(document["paths"])
    body = "".join(_group(name, operations, schemas) for name, operations in groups.items())
    objects = "".join(_object(name, schema) for name, schema in sorted(schemas.items()))
    return Page(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(info["title"])} API</title>
<link rel="icon" href="data:,"><style>{style}</style></head><body>
<a class="skip" href="#content">Skip to the content</a>
<nav aria-label="Operations"><p class="home"><a href="/">{escape(info["title"])}</a> API {escape(info["version"])}</p>
{"".join(_contents(name, operations) for name, operations in groups.items())}
<p><a href="#objects">Objects</a></p><p><a href="/openapi.json">openapi.json</a></p></nav>
<main id="content"><h1>{escape(info["title"])} API</h1>{_prose(info["description"])}
<p>On a service with API keys, every <code>/v1/</code> route needs <code>Authorization: Bearer KEY</code>. Errors are
<a href="#ErrorBody">one object</a>; its message names the parameter, the limit and what to do.</p>
{body}<section><h2 id="objects">Objects</h2>{objects}</section></main></body></html>""")


def _by_group(paths: Json) -> dict[str, list[tuple[str, str, Json]]]:
    """Group name -> (method, path, operation) of its operations, in the order of the document."""
    groups: dict[str, list[tuple[str, str, Json]]] = {name: [] for name in _GROUPS}
    for path, methods in paths.items():
        for method, operation in methods.items():
            groups.setdefault(operation.get("tags", ["other"])[0], []).append((method, path, operation))
    return {name: found for name, found in groups.items() if found}


def _contents(name: str, operations: list[tuple[str, str, Json]]) -> str:
    lines = "".join(
        f'<li><a href="#{escape(each["operationId"])}">{_method(method)}<span>{_path(path)}</span></a></li>'
        for method, path, each in operations
    )
    return f"<h2>{escape(_GROUPS.get(name, name))}</h2><ul>{lines}</ul>"


def _group(name: str, operations: list[tuple[str, str, Json]], schemas: Json) -> str:
    parts = "".join(_operation(*each, schemas) for each in operations)
    return f"<section><h2>{escape(_GROUPS.get(name, name))}</h2>{parts}</section>"


def _operation(method: str, path: str, operation: Json, schemas: Json) -> str:
    name = escape(operation["operationId"])
    parameters = [
        _row(each["name"], each["schema"] | _described(each), required=each.get("required", False), place=each["in"])
        for each in operation.get("parameters", ())
    ]
    return (
        f'<article aria-labelledby="{name}"><h3 id="{name}">{_method(method)} {_path(path)}</h3>'
        f"{_prose(operation.get('description', ''))}{_table('Parameters', parameters)}"
        f"{_body(operation.get('requestBody', {}), schemas)}{_responses(operation['responses'])}</article>"
    )


def _body(body: Json, schemas: Json) -> str:
    html = ""
    for mime, content in body.get("content", {}).items():
        schema = _resolved(content["schema"], schemas)
        html += _table(f"Body: {mime}", list(_fields(schema)))
        named = list(content.get("examples", {}).values())
        values = [content["example"]] if "example" in content else schema.get("examples", [])[:1]
        for example in named or [{"value": value} for value in values]:
            html += _example(example.get("summary", "Example"), example["value"])
    return html


def _responses(responses: Json) -> str:
    rows = ""
    for status, response in sorted(responses.items()):
        content = response.get("content", {})
        kinds = ", ".join(_content(mime, each) for mime, each in content.items())
        codes = [code for each in content.values() for code in each.get("examples", {})]
        meaning = _inline(response["description"]) + "".join(f" <code>{escape(code)}</code>" for code in codes)
        shown = "others" if status == "default" else escape(status)
        rows += f"<tr><th scope=row>{shown}</th><td>{meaning}</td><td>{kinds}</td></tr>"
    return f"<details><summary>Responses</summary>{_wide(_head('Status', 'Meaning', 'Content') + rows)}</details>"


def _content(mime: str, content: Json) -> str:
    return _type(content.get("schema", {})) if mime == "application/json" else f"<code>{escape(mime)}</code>"


def _object(name: str, schema: Json) -> str:
    example = _example("Example", schema["examples"][0]) if schema.get("examples") else ""
    return (
        f'<article aria-labelledby="{name}"><h3 id="{name}">{name}</h3>{_prose(schema.get("description", ""))}'
        f"{_table('Fields', list(_fields(schema)))}{example}</article>"
    )


def _fields(schema: Json) -> Iterator[str]:
    if "enum" in schema:
        yield _row("value", schema, required=False)
    for name, each in schema.get("properties", {}).items():
        yield _row(name, each, required=name in schema.get("required", ()))


def _row(name: str, schema: Json, *, required: bool, place: str = "") -> str:
    notes = ", ".join(filter(None, (place, "required" if required else "")))
    small = f"<small>{escape(notes)}</small>" if notes else ""
    text = _inline(schema.get("description", ""))
    return f"<tr><th scope=row><code>{escape(name)}</code>{small}</th><td>{_type(schema)}</td><td>{text}</td></tr>"


def _table(title: str, rows: list[str]) -> str:
    if not rows:
        return ""
    return f"<h4>{escape(title)}</h4>{_wide(_head('Name', 'Type', 'Meaning') + ''.join(rows))}"


def _head(*columns: str) -> str:
    return "<tr>" + "".join(f"<th scope=col>{column}</th>" for column in columns) + "</tr>"


def _wide(rows: str) -> str:
    """A table that scrolls sideways on a narrow screen; focusable, so that the keyboard can scroll it too."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="Table"><table>{rows}</table></div>'


def _type(schema: Json) -> str:
    """A type in words: a link to its object, the allowed values, or its name and limits."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(_type(each) for each in kinds)
    if "enum" in schema or "const" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("format") == "binary" or "contentMediaType" in schema:
        return "file"
    limits = [text.format(_number(schema[name])) for name, text in _LIMITS.items() if name in schema]
    return escape(", ".join([str(schema.get("type", "any")), *limits]))


def _number(value: float) -> str:
    return "2⁶³ − 1" if value > _ROUNDED else f"{value:,.15g}"


def _described(parameter: Json) -> Json:
    return {"description": parameter.get("description") or parameter["schema"].get("description", "")}


def _resolved(schema: Json, schemas: Json) -> Json:
    resolved: Json = schemas[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
    return resolved


def _example(title: str, value: object) -> str:
    text = escape(json.dumps(value, indent=2, ensure_ascii=False))
    return f'<details><summary>{escape(title)}</summary><pre tabindex="0">{text}</pre></details>'


def _method(method: str) -> str:
    return f'<span class="method {escape(method)}">{escape(method.upper())}</span>'


def _path(path: str) -> str:
    return f"<code>{escape(path).replace('/', '<wbr>/')}</code>"


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.strip().split("\n\n") if part)


def _inline(text: str) -> str:
    """Escape a text; `code` and [links](/path) to this service are markup."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\[([^\]]+)\]\((/[^)\s]*)\)", r'<a href="\2">\1</a>', html)
