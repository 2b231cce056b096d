"""/openapi.json has an example of everything, and every example matches the schema beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from server.errors import RequestError
from server.gateway.app import create_app
from server.settings import Settings

DOCUMENT = create_app(Settings()).openapi()
#: Generated clients take their method names from these: they change only with a major version.
OPERATIONS = """
    generate edit_image vary_image submit_job list_jobs put_job get_job follow_job get_job_image get_job_preview
    cancel_job list_files upload_file get_file delete_file get_file_content create_batch list_batches get_batch
    cancel_batch create_response list_models get_model live ready metrics
""".split()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", method, operation


ALL = [pytest.param(operation, method, id=name) for name, method, operation in operations()]


def matches(example: Any, schema: dict[str, Any]) -> bool:
    """Validate with the whole document at hand, because references in the schema point into it."""
    return jsonschema_rs.is_valid({**schema, "components": DOCUMENT["components"]}, example)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return dict(DOCUMENT["components"]["schemas"][name] if name else schema)


def examples(content: dict[str, Any]) -> list[Any]:
    """Examples of a request or response body: its own, named or not, and those of its schema."""
    named = [each["value"] for each in content.get("examples", {}).values()]
    return [
        *named,
        *([content["example"]] if "example" in content else []),
        *resolved(content["schema"]).get("examples", []),
    ]


def test_operation_ids_are_stable() -> None:
    assert sorted(operation["operationId"] for _, _, operation in operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_operation_has_a_description_and_an_example_response(operation: dict[str, Any], method: str) -> None:
    assert operation["summary"] and operation["description"]
    succeeded = {status: each for status, each in operation["responses"].items() if status.startswith("2")}
    for status, response in succeeded.items():
        for media in ("application/json", "application/jsonl"):
            if media in response.get("content", {}):
                content = response["content"][media]
                assert examples(content), (status, media)
                assert all(matches(each, content["schema"]) for each in examples(content)), (status, media)


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_error_has_an_example_that_the_code_can_produce(
    operation: dict[str, Any], method: str, request_errors: set[type[RequestError]]
) -> None:
    by_code = {each.code: each for each in request_errors}
    for status, response in operation["responses"].items():
        if status[0] not in "45" or operation["operationId"] == "ready":
            continue
        body = response["content"]["application/json"]
        assert response["description"] and body["examples"], status
        for code, example in body["examples"].items():
            assert matches(example["value"], body["schema"])
            error = example["value"]["error"]
            assert error["code"] == code and by_code[code].status == int(status)
            assert error["type"] == by_code[code].type


@pytest.mark.parametrize(("operation", "method"), ALL)
def test_every_request_body_has_an_example_that_would_be_accepted(operation: dict[str, Any], method: str) -> None:
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        assert examples(body), f"{operation['operationId']} {media} has no example"
        if media == "application/json":
            assert all(matches(each, body["schema"]) for each in examples(body))
        else:  # everything in a form is text
            assert all(set(each) <= set(resolved(body["schema"])["properties"]) for each in examples(body))


def test_every_error_of_the_service_is_documented_somewhere(request_errors: set[type[RequestError]]) -> None:
    documented = {
        code
        for _, _, operation in operations()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    assert {each.code for each in request_errors} - documented == {"job_canceled"}, "it is a 400 of its own kind"


def test_every_field_of_a_schema_is_described() -> None:
    """Fields whose name says everything, or that are constants, are exempt."""
    obvious = {"id", "object", "data", "deleted", "error", "queue", "progress", "usage", "owned_by", "metadata"}
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            if "ValidationError" not in name and field not in obvious and "$ref" not in described:
                assert described.get("description"), f"{name}.{field}"


def test_a_model_tells_whether_it_has_alpha() -> None:
    """Clients ask a model for it before they ask for a transparent image, and the contract did not have it."""
    schema = DOCUMENT["components"]["schemas"]["ModelObject"]
    assert schema["properties"]["transparent"]["type"] == "boolean"
    assert all(isinstance(example["transparent"], bool) for example in schema["examples"])
