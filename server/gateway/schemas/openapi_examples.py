"""An example of every answer in /openapi.json, and what holds for all routes: keys, and the errors of the door.

tests/server/test_openapi_examples.py holds each example against its schema, and compares the errors with the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from server import errors
from server.batch_format import URL

_JOB_ID, _BATCH_ID, _FILE_ID = (
    "job_5f0c2d1e9b7a4c3d8e6f1a2b",
    "batch_9d3b1c7e5f2a4b6c8d0e1f2a",
    "file-1a2b3c4d5e6f708192a3b4c5",
)
_HOME = f"/v1/jobs/{_JOB_ID}"
_METRICS = {
    "queue_time": 0.004, "predict_time": 0.412, "encode_time": 0.003, "total_time": 0.423, "batch_size": 3,
    "kernels": "torch",
}  # fmt: skip
_PICTURES = {
    "created": 1767225600,
    "data": [{"b64_json": "iVBORw0KGgo…", "url": None, "revised_prompt": None, "seed": 7}],
    "output_format": "png", "size": "128x128", "quality": "medium", "background": "opaque", "job_id": _JOB_ID,
    "usage": {
        "input_tokens": 9, "output_tokens": 64, "total_tokens": 73,
        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
    },
    "metrics": _METRICS, "warnings": [],
}  # fmt: skip
_WAITING = {
    "id": _JOB_ID, "object": "job", "status": "queued", "created_at": 1767225600.0, "started_at": None,
    "completed_at": None, "expires_at": None,
    "queue": {"position": 2, "eta_seconds": 1.3, "is_possible": True},
    "progress": {"step": 0, "steps": 32, "fraction": 0.0}, "attempt": 0,
    "input": {"prompt": "a red apple, 3d style", "model": "scenes-128", "n": 1, "seed": 7, "quality": "medium"},
    "output": [], "error": None, "metrics": None,
    "urls": {"get": _HOME, "cancel": f"{_HOME}/cancel", "events": f"{_HOME}/events"}, "warnings": [],
}  # fmt: skip
_ENDED = _WAITING | {
    "status": "succeeded", "started_at": 1767225600.004, "completed_at": 1767225600.423, "expires_at": 1767229200.423,
    "queue": {"position": None, "eta_seconds": None, "is_possible": True},
    "progress": {"step": 32, "steps": 32, "fraction": 1.0}, "attempt": 1,
    "output": [{
        "url": f"{_HOME}/images/0", "seed": 7, "width": 64, "height": 64, "format": "png", "size_bytes": 6202,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    }],
    "metrics": _METRICS,
}  # fmt: skip
_FILE = {
    "id": _FILE_ID, "object": "file", "bytes": 5120, "created_at": 1767225600, "expires_at": 1767312000,
    "filename": "prompts.jsonl", "purpose": "batch", "status": "processed",
}  # fmt: skip
_BATCH = {
    "id": _BATCH_ID, "object": "batch", "endpoint": URL, "status": "in_progress", "errors": None,
    "input_file_id": _FILE_ID, "completion_window": "24h", "output_file_id": f"file-out-{_BATCH_ID}",
    "error_file_id": None, "created_at": 1767225600, "in_progress_at": 1767225601, "expires_at": 1767312000,
    "finalizing_at": None, "completed_at": None, "failed_at": None, "expired_at": None, "cancelling_at": None,
    "cancelled_at": None, "request_counts": {"total": 100, "completed": 42, "failed": 0}, "metadata": None,
}  # fmt: skip
_MODEL = {
    "id": "scenes-128", "object": "model", "created": 0, "owned_by": "fluid-serve", "ready": True,
    "family": "fluid", "image_size": [128, 128], "tokens": 64, "styles": ["3d", "flat"], "vocabulary": ["apple"],
    "limits": {"max_n": 10, "max_num_inference_steps": 64}, "defaults": {"quality": "medium", "guidance_scale": 3.0},
}  # fmt: skip
_LINE = (
    '{"id": "…_0", "custom_id": "a", "error": null, "response": {"status_code": 200, "request_id": "…", "body": {}}}\n'
)

#: operationId -> media type -> what a success looks like. A job that waits answers 202, one that has ended 200.
ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"application/json": _PICTURES},
    "edit_image": {"application/json": _PICTURES},
    "vary_image": {"application/json": _PICTURES},
    **{name: {"200": _ENDED, "202": _WAITING} for name in ("submit_job", "put_job", "get_job")},
    "cancel_job": {"200": _WAITING | {"status": "canceled"}, "202": _WAITING | {"status": "processing"}},
    "list_jobs": {"application/json": {"object": "list", "data": [_ENDED], "last_id": _JOB_ID, "has_more": False}},
    "upload_file": {"application/json": _FILE},
    "get_file": {"application/json": _FILE},
    "list_files": {"application/json": {"object": "list", "data": [_FILE], "has_more": False}},
    "delete_file": {"application/json": {"id": _FILE_ID, "object": "file", "deleted": True}},
    "get_file_content": {"application/jsonl": _LINE},
    "create_batch": {"application/json": _BATCH | {"status": "validating", "output_file_id": None}},
    "get_batch": {"application/json": _BATCH},
    "cancel_batch": {"application/json": _BATCH | {"status": "cancelling", "cancelling_at": 1767225700}},
    "list_batches": {"application/json": {
        "object": "list", "data": [_BATCH], "has_more": False, "first_id": _BATCH_ID, "last_id": _BATCH_ID,
    }},
    "list_models": {"application/json": {"object": "list", "data": [_MODEL]}},
    "get_model": {"application/json": _MODEL},
    "live": {"application/json": {"status": "live"}},
    "ready": {"application/json": {"status": "ready"}},
}  # fmt: skip

#: Of forms: files stand for their bytes.
BODIES: Mapping[str, Mapping[str, Any]] = {
    "edit_image": {"image": "apple.png", "mask": "mask.png", "prompt": "a green apple, 3d style", "seed": "7"},
    "vary_image": {"image": "apple.png", "keep": "0.3", "n": "3"},
    "upload_file": {"file": "prompts.jsonl", "purpose": "batch"},
}

_ERRORS: Mapping[str, errors.RequestError] = {
    "400": errors.InvalidRequest("'seed' must be at most 9223372036854775807, not 1e+99.", param="seed"),
    "401": errors.InvalidApiKey("Nobody has this API key. Ask the operator of this service for one."),
    "403": errors.KeyDisabled("The API key of 'alice' is switched off. Ask the operator."),
    "406": errors.NotAcceptable(
        "Accept: image/gif cannot be had. Accept image/png, image/webp, image/jpeg or image/*."
    ),
    "408": errors.RequestTooSlow("The body did not arrive within 30 s (FLUID_BODY_TIMEOUT_S)."),
    "410": errors.JobExpired(f"Job {_JOB_ID} succeeded; its record and images have been deleted."),
    "413": errors.BodyTooLarge("The body is larger than 1048576 bytes; no request needs that."),
    "422": errors.KeyReused("The Idempotency-Key 'k1' belongs to another request. Use a new one for a new request."),
    "429": errors.QueueFull("10000 jobs are waiting, the limit is 10000 (FLUID_MAX_QUEUE). Try later."),
    "500": errors.JobFailed(f"Job {_JOB_ID} failed after 3 attempts: its worker died each time."),
    "503": errors.NoWorkers("No live worker serves scenes-128 now. Start one with `fluid worker`."),
    "504": errors.DeadlineExceeded("Not ready after 300 s (FLUID_REQUEST_TIMEOUT_S); the job was canceled."),
}
_AWAY = errors.QueueUnavailable()
_LIMITED = errors.RateLimited("'alice' may make 60 requests a minute (FLUID_RATE_LIMIT). Try later.", retry_after_s=1)
_UNKNOWN: tuple[tuple[str, errors.RequestError], ...] = (
    ("/v1/jobs/{job_id}/images", errors.UnknownImage(f"Job {_JOB_ID} has images 0 to 0, not 3.", param="index")),
    ("/v1/jobs", errors.UnknownJob("No job has the id 'job_1'. Ids come from POST /v1/jobs.", param="job_id")),
    ("/v1/batches", errors.UnknownBatch("No batch has the id 'batch_1'.", param="batch_id")),
    ("/v1/models", errors.UnknownModel("No model has the id 'dall-e-3'. Served: scenes-128.", param="model")),
    ("/v1/files", errors.UnknownFile("No file has the id 'file-1'; files are kept for 86400 s.", param="file_id")),
)
_DOOR = {
    "401": "No API key, or one that nobody has; only where the service has keys.",
    "403": "The API key is switched off.",
}
_DOOR_OF_WORK = {
    "408": "The body did not arrive in time.",
    "429": "The queue is full, or the key has made its requests of this minute; obey Retry-After.",
}


def install_examples(app: FastAPI) -> None:
    """From now on `app.openapi()` has them."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(document: dict[str, Any]) -> dict[str, Any]:
    bearer = {"type": "http", "scheme": "bearer", "description": "Only where the service has keys."}
    document["components"]["securitySchemes"] = {"key": bearer}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.startswith("/v1/"):
                operation["security"] = [{}, {"key": []}]
                works = method in ("post", "put") and not path.endswith("/cancel")
                for status, meaning in (_DOOR | (_DOOR_OF_WORK if works else {})).items():
                    operation["responses"].setdefault(status, {})["description"] = meaning
            if operation["operationId"] in BODIES:
                body = operation["requestBody"]["content"]["multipart/form-data"]
                body["example"] = BODIES[operation["operationId"]]
            _answers(path, operation)
    return document


def _answers(path: str, operation: dict[str, Any]) -> None:
    shown = ANSWERS.get(operation["operationId"], {})
    for status, answer in operation["responses"].items():
        content = answer.setdefault("content", {})
        if status.startswith("2"):
            for media in set(content) & set(shown):
                content[media]["example"] = shown[media]
            if status in shown:
                content["application/json"]["example"] = shown[status]
        elif status != "default" and operation["operationId"] != "ready":
            body = content.setdefault("application/json", {"schema": {"$ref": "#/components/schemas/ErrorBody"}})
            body["examples"] = {each.code: {"value": each.body()} for each in _errors(path, status)}


def _errors(path: str, status: str) -> list[errors.RequestError]:
    if status == "404":
        return [next(error for prefix, error in _UNKNOWN if path.startswith(prefix))]
    return [_ERRORS[status], *([_LIMITED] if status == "429" else []), *([_AWAY] if status == "503" else [])]
