"""/openapi.json shows an example of everything, and each example is what the schema beside it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from server.errors import RequestError
from server.gateway.app import create_app
from server.settings import Settings

DOCUMENT = create_app(Settings()).openapi()
#: Names that generated clients are made of: they change only with a major version.
OPERATIONS = """
    generate edit_image vary_image submit_job list_jobs put_job get_job follow_job get_job_image get_job_preview
    cancel_job list_files upload_file get_file delete_file get_file_content create_batch list_batches get_batch
    cancel_batch list_models get_model live ready metrics
""".split()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", method, operation


ALL = [pytest.param(operation, method, id=name) for name, method, operation in operations()]


def fits(example: Any, schema: dict[str, Any]) -> bool:
    """References in the schema point into the document."""
    return jsonschema_rs.is_valid({**schema, "components": DOCUMENT["components"]}, example)


def test_the_names_of_operations_are_stable() -> None:
    assert sorted(operation["operationId"] for _, _, operation in operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_operation_says_what_it_does_and_shows_it(operation: dict[str, Any], method: str) -> None:
    assert operation["summary"] and operation["description"]
    succeeded = {status: each for status, each in operation["responses"].items() if status.startswith("2")}
    for status, answer in succeeded.items():
        for media in ("application/json", "application/jsonl"):
            if media in answer.get("content", {}):
                assert fits(answer["content"][media]["example"], answer["content"][media]["schema"]), (status, media)


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_error_is_shown_as_the_code_makes_it(
    operation: dict[str, Any], method: str, request_errors: set[type[RequestError]]
) -> None:
    by_code = {each.code: each for each in request_errors}
    for status, answer in operation["responses"].items():
        if status[0] not in "45" or operation["operationId"] == "ready":
            continue
        body = answer["content"]["application/json"]
        assert body["examples"], status
        for code, example in body["examples"].items():
            assert fits(example["value"], body["schema"])
            error = example["value"]["error"]
            assert error["code"] == code and by_code[code].status == int(status)
            assert error["type"] == by_code[code].type


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_body_has_an_example_that_would_be_accepted(operation: dict[str, Any], method: str) -> None:
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = body["schema"]
        name = schema.get("$ref", "").rsplit("/", 1)[-1]
        shown = [each["value"] for each in body.get("examples", {}).values()]
        shown += [body["example"]] if "example" in body else []
        shown += DOCUMENT["components"]["schemas"].get(name, {}).get("examples", [])
        assert shown, f"{operation['operationId']} {media} has no example"
        if media == "application/json":
            assert all(fits(example, schema) for example in shown)
        else:  # everything in a form is text
            assert all(set(example) <= set(_properties(schema)) for example in shown)


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return dict((DOCUMENT["components"]["schemas"][name] if name else schema)["properties"])


def test_every_error_of_the_service_is_shown_somewhere(request_errors: set[type[RequestError]]) -> None:
    shown = {
        code
        for _, _, operation in operations()
        for answer in operation["responses"].values()
        for code in answer.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert {each.code for each in request_errors} - shown == {"job_canceled"}, "it is a 400 of its own kind"
