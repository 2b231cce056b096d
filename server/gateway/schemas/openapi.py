"""OpenAPI responses: every status that a route answers with, and every error as the code produces it.

An error is described by the first sentence of its class's docstring. Examples of requests and of successful responses
stand beside their schemas.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from fastapi import Body, FastAPI
from pydantic import BaseModel

from server import errors
from server.gateway.schemas.errors import ErrorBody
from server.gateway.schemas.images import EXAMPLES, ImageRequest
from server.gateway.schemas.jobs import JOB_ID, JobObject
from server.gateway.signed_links import LinkRefused
from server.images.codec import MIME

Responses = dict[int | str, dict[str, Any]]
RequestBody = Annotated[ImageRequest, Body(openapi_examples=EXAMPLES)]
#: Events of the call of the image_generation tool.
CALL_EVENTS = ("in_progress", "generating", "partial_image", "completed")
_FILES: dict[str, Any] = {mime: {"schema": {"type": "string", "format": "binary"}} for mime in MIME.values()}


def _errors(*examples: errors.RequestError) -> Responses:
    responses: Responses = {}
    for error in examples:
        meaning = (inspect.getdoc(error) or "").replace("\n", " ").split(". ")[0].rstrip(".") + "."
        response = responses.setdefault(error.status, {"description": meaning, "content": _error_body()})
        if meaning not in response["description"]:
            response["description"] += f" Or: {meaning}"
        response["content"]["application/json"]["examples"][error.code] = {"value": error.body()}
    return responses


def _error_body() -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "examples": {}}}


def _events(*names: str) -> dict[str, Any]:
    """Describe a stream of server-sent events by the schema of one event."""
    fields = {
        "event": {"enum": list(names)},
        "data": {"type": "string", "description": "A JSON object."},
        "id": {"type": "string", "description": "Send it as `Last-Event-ID` to resume after this event."},
    }
    return {"text/event-stream": {"schema": {"type": "object", "properties": fields, "required": ["event", "data"]}}}


_INVALID = errors.InvalidRequest("'seed' should be a valid integer; got 'abc'.", param="seed")
_INVALID_INDEX = errors.InvalidRequest("'index' should be a valid integer; got 'x'.", param="index")
_INVALID_LIMIT = errors.InvalidRequest("'limit' should be less than or equal to 100; got '500'.", param="limit")
_INVALID_EVENT = errors.InvalidRequest("'Last-Event-ID' must be the id of an event; got 'x'.", param="Last-Event-ID")
_UNKNOWN_JOB = errors.UnknownJob("No job has the id 'job_1'. Ids come from POST /v1/jobs.", param="job_id")
_UNKNOWN_IMAGE = errors.UnknownImage(f"Job {JOB_ID} has images 0 to 0, not 3.", param="index")
_UNKNOWN_FILE = errors.UnknownFile("No file has the id 'file-1'; files are kept for 86400 s.", param="file_id")
_UNKNOWN_BATCH = errors.UnknownBatch("No batch has the id 'batch_1'.", param="batch_id")
_UNKNOWN_MODEL = errors.UnknownModel("No model has the id 'dall-e-3'. Served: atlas-128.", param="model")
_NOT_ACCEPTABLE = errors.NotAcceptable("Accept: image/gif is not supported. Accept image/png, image/webp or image/*.")
_EXPIRED = errors.JobExpired(f"Job {JOB_ID} succeeded; its record and images have since been deleted.")
_LARGE_BODY = errors.BodyTooLarge("The body is larger than 1048576 bytes; no request needs that.")
_LARGE_IMAGE = errors.BodyTooLarge("'image' has more than 8388608 bytes.", param="image")
_LARGE_FILE = errors.BodyTooLarge("'file' has more than 33554432 bytes; split it.", param="file")
_KEY_REUSED = errors.KeyReused("The Idempotency-Key 'k1' belongs to another request. Use a new one.")
_FAILED = errors.JobFailed(f"Job {JOB_ID} failed after 3 attempts: its worker died each time.")
_NO_WORKERS = errors.NoWorkers("No live worker serves atlas-128 right now. POST /v1/jobs queues it until one is back.")
_NO_QUEUE = errors.QueueUnavailable()
_NO_STORE = errors.StorageUnavailable("does not answer")
_NOT_REPLICATED = errors.NotReplicated("0 of 1 replicas of Redis (FLUID_REPLICAS) had the request within 2 s.")
_UNREADABLE = errors.UnreadableRecord(f"Job {JOB_ID} was written by another version of this service.", retry_after_s=5)
_TIMEOUT = errors.DeadlineExceeded("Not ready after 300 s (FLUID_REQUEST_TIMEOUT_S); the job was canceled.")

#: For the whole app. It also keeps FastAPI from listing its own 422, which never leaves this service.
ANY_ERROR: Responses = {"default": {"model": ErrorBody, "description": "Every other error has this shape too."}}
SUBMIT_ERRORS = _errors(_INVALID, _UNKNOWN_MODEL, _LARGE_BODY, _NO_WORKERS, _NO_QUEUE, _NOT_REPLICATED)
GENERATE: Responses = {
    **SUBMIT_ERRORS,
    200: {
        "description": "The images as JSON; the file itself with `Accept: image/*` (and n=1); events with `stream`.",
        "content": _FILES | _events("image_generation.partial_image", "image_generation.completed", "error"),
    },
    **_errors(_NOT_ACCEPTABLE, _EXPIRED, _KEY_REUSED, _FAILED, _TIMEOUT),
    **_errors(_NO_WORKERS, _NO_QUEUE, _NOT_REPLICATED, _NO_STORE),
}
EDIT: Responses = {
    **GENERATE,
    200: {
        "description": "As for new images; events with `stream` (edits only).",
        "content": _FILES | _events("image_edit.partial_image", "image_edit.completed", "error"),
    },
    **_errors(_LARGE_IMAGE),
}
RESPONSES: Responses = {
    **SUBMIT_ERRORS,
    200: {
        "description": "The Response with its image_generation_call; events with `stream`.",
        "content": _events(
            "response.created",
            "response.in_progress",
            "response.completed",
            "response.failed",
            "response.output_item.added",
            "response.output_item.done",
            *(f"response.image_generation_call.{name}" for name in CALL_EVENTS),
        ),
    },
    **_errors(_EXPIRED, _KEY_REUSED, _FAILED, _TIMEOUT, _LARGE_IMAGE, _UNKNOWN_FILE),
}
LOOKUP = _errors(_UNKNOWN_JOB, _EXPIRED, _NO_QUEUE, _UNREADABLE)
JOB: Responses = {
    **LOOKUP,
    200: {"model": JobObject, "description": "The job has ended."},
    202: {"model": JobObject, "description": "The job is waiting or running."},
}
SUBMIT: Responses = {
    **SUBMIT_ERRORS,
    200: {
        "model": JobObject,
        "description": "The job has ended: it was submitted before, or you waited with `Prefer: wait`.",
    },
    **_errors(_EXPIRED, _KEY_REUSED),
}
_STREAMS = errors.RateLimited("'alice' has 100 open event streams, the limit is 100 (FLUID_MAX_KEY_STREAMS).")
BATCH_ERRORS = _errors(_INVALID_LIMIT, _UNKNOWN_BATCH, _UNKNOWN_FILE, _NO_QUEUE)
CREATE_BATCH: Responses = {**BATCH_ERRORS, **_errors(_KEY_REUSED, _NOT_REPLICATED)}
FILE_ERRORS: Responses = {**BATCH_ERRORS, **_errors(_LARGE_FILE, _NOT_REPLICATED)}
_LINE = '{"id": "…_0", "custom_id": "a", "error": null, "response": {"status_code": 200, "body": {}}}\n'
_LINES = {"application/jsonl": {"schema": {"type": "string"}, "example": _LINE}}
FILE_CONTENT: Responses = {**BATCH_ERRORS, 200: {"description": "JSON lines.", "content": _LINES}}
LISTING = _errors(_INVALID_LIMIT, _NO_QUEUE)
EVENTS: Responses = {
    **LOOKUP,
    200: {
        "description": "`status`, `progress` and `partial_image` events; the last event is the job's final state.",
        "content": _events(
            "status", "progress", "partial_image", "succeeded", "failed", "canceled", "aborted", "error"
        ),
    },
    **_errors(_INVALID_EVENT, _STREAMS),
}
JOB_IMAGE: Responses = {
    **LOOKUP,
    200: {"description": "The image file.", "content": _FILES},
    **_errors(_INVALID_INDEX, _UNKNOWN_JOB, _UNKNOWN_IMAGE, _NO_QUEUE, _UNREADABLE, _NO_STORE),
}
PREVIEW = JOB_IMAGE
MODEL = _errors(_UNKNOWN_MODEL, _NO_QUEUE)
READY: Responses = {
    200: {"content": {"application/json": {"example": {"status": "ready", "models": {"atlas-128": True}}}}},
    503: {
        "description": "No worker can generate; `reason` says why.",
        "content": {"application/json": {"example": {"status": "not ready", "reason": "no live worker"}}},
    },
}
#: From middleware: authentication for every route under /v1/, and the limits of requests that read, and of those that
#: generate or upload.
_REFUSALS = (
    errors.InvalidApiKey("Unknown API key. Ask the operator of this service for one."),
    errors.KeyDisabled("The API key of 'alice' is disabled. Ask the operator."),
    errors.OriginNotAllowed("This request comes from a page of 'https://evil.example'.", param="Origin"),
)
_AUTHENTICATION = _errors(*_REFUSALS)
_LINKS = _errors(*_REFUSALS, LinkRefused("This link has expired.", param="expires"))
_READS = _errors(errors.RateLimited("'alice' is limited to 6000 reads a minute (FLUID_READ_RATE_LIMIT). Try later."))
_LIMITS = _errors(
    errors.RequestTooSlow("The body did not arrive within 30 s (FLUID_BODY_TIMEOUT_S)."),
    errors.QueueFull("10000 jobs are waiting for atlas-128, the limit is 10000 (FLUID_MAX_QUEUE). Try later."),
    errors.RateLimited("'alice' may make 60 requests a minute (FLUID_RATE_LIMIT). Try later."),
)


def form(schema: type[BaseModel], *files: str, required: list[str]) -> dict[str, Any]:
    """Describe the body of a route that parses its multipart form itself: the schema's fields, and files."""
    described = schema.model_json_schema()
    properties = {name: {"type": "string", "format": "binary"} for name in files} | described["properties"]
    body = {"type": "object", "properties": properties, "required": required}
    content = {"multipart/form-data": {"schema": body, "example": described["examples"][0]}}
    return {"requestBody": {"required": True, "content": content}}


def install_openapi(app: FastAPI) -> None:
    """Add to `app.openapi()` what no route declares: authentication, and the errors that middleware answers with."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document["components"]
    bearer = {"type": "http", "scheme": "bearer", "description": "Only on a service that requires API keys."}
    components["securitySchemes"] = {"key": bearer}
    components["schemas"]["Body_upload_file"]["examples"] = [{"file": "prompts.jsonl", "purpose": "batch"}]
    for schema in components["schemas"].values():
        for example in schema.get("examples", ()):
            _restore_nulls(example, schema, components["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            operation["security"] = [{}, {"key": []}]
            limited = method in ("post", "put") and not path.endswith("/cancel")
            added = (_LINKS if path.endswith("/images/{index}") else _AUTHENTICATION) | (_LIMITS if limited else {})
            operation["responses"] |= {str(status): response for status, response in added.items()}
            for status, response in _READS.items() if method == "get" else ():
                operation["responses"].setdefault(str(status), response)
    return document


def _restore_nulls(example: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put back the required fields that are null: FastAPI drops every null from the document, even in examples."""
    schema = schemas[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema
    if isinstance(example, list):
        for each in example:
            _restore_nulls(each, schema.get("items", {}), schemas)
    elif isinstance(example, dict):
        example |= {name: None for name in schema.get("required", ()) if name not in example}
        for name in example.keys() & schema.get("properties", {}).keys():
            _restore_nulls(example[name], schema["properties"][name], schemas)
