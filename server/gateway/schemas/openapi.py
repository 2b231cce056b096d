"""What /openapi.json says beyond the types: every error that a route can answer with, and examples of requests."""

from typing import Annotated, Any

from fastapi import Body
from fastapi.openapi.models import Example
from pydantic import BaseModel

from server.gateway.schemas.errors import ErrorBody
from server.gateway.schemas.images import ImageRequest
from server.gateway.schemas.jobs import JobObject
from server.images.codec import MIME

Responses = dict[int | str, dict[str, Any]]


def _error(description: str) -> dict[str, Any]:
    return {"model": ErrorBody, "description": description}


#: For the whole app. It also keeps FastAPI from listing its own 422, which never leaves this service.
ANY_ERROR: Responses = {"default": _error("Every other error has this shape as well.")}
SUBMIT_ERRORS: Responses = {
    400: _error("A parameter is wrong; `param` names it."),
    413: _error("The body is larger than 1 MiB."),
    503: _error("No live worker, or no queue; obey Retry-After."),
}
_KEY_REUSED = _error("The Idempotency-Key, or job id, is that of another request.")


def _events(*names: str) -> dict[str, Any]:
    """A stream of server-sent events; the schema is that of one of them."""
    fields = {
        "event": {"enum": list(names)},
        "data": {"type": "string", "description": "JSON."},
        "id": {"type": "string", "description": "For Last-Event-ID."},
    }
    return {"text/event-stream": {"schema": {"type": "object", "properties": fields, "required": ["event", "data"]}}}


_FILES: dict[str, Any] = {mime: {"schema": {"type": "string", "format": "binary"}} for mime in MIME.values()}
GENERATE: Responses = {
    **SUBMIT_ERRORS,
    200: {
        "description": "The pictures; with `Accept: image/*` (and n=1) the file itself; with `stream` events.",
        "content": _FILES | _events("image_generation.partial_image", "image_generation.completed", "error"),
    },
    406: _error("The Accept header wants an image type that cannot be had, or not that of `output_format`."),
    410: _error("Of an Idempotency-Key whose job was deleted since."),
    422: _KEY_REUSED,
    500: _error("The job failed, however often it was tried."),
    504: _error("Not ready within FLUID_REQUEST_TIMEOUT_S; the job was canceled."),
}
EDIT: Responses = {
    **GENERATE,
    200: {
        "description": "The pictures; with `Accept: image/*` (and n=1) the file itself; of edits with `stream` events.",
        "content": _FILES | _events("image_edit.partial_image", "image_edit.completed", "error"),
    },
    413: _error("A picture is larger than 8 MiB."),
}
LOOKUP: Responses = {
    404: _error("No such job."),
    410: _error("The job existed; its result was deleted."),
    503: _error("The queue does not answer; obey Retry-After."),
}
JOB: Responses = {
    **LOOKUP,
    200: {"model": JobObject, "description": "The job has ended."},
    202: {"model": JobObject, "description": "The job waits or runs."},
}
SUBMIT: Responses = {
    **SUBMIT_ERRORS,
    200: {"model": JobObject, "description": "The job has ended: it was there before, or you preferred to wait."},
    410: _error("A job of this id has ended and was deleted."),
    422: _KEY_REUSED,
}
BATCH_ERRORS: Responses = {
    400: _error("A parameter is wrong; `param` names it."),
    404: _error("No such file or batch."),
    503: _error("The queue does not answer; obey Retry-After."),
}
CREATE_BATCH: Responses = {**BATCH_ERRORS, 422: _KEY_REUSED}
FILE_ERRORS: Responses = {**BATCH_ERRORS, 413: _error("The file is larger than 32 MiB.")}
FILE_CONTENT: Responses = {
    **BATCH_ERRORS,
    200: {"description": "The lines.", "content": {"application/jsonl": {"schema": {"type": "string"}}}},
}
LISTING: Responses = {
    400: _error("`limit`, `after` or `status` is wrong."),
    503: _error("The queue does not answer; obey Retry-After."),
}
EVENTS: Responses = {
    **LOOKUP,
    200: {
        "description": "`status`, `progress`, `partial_image`, and last the state in which the job ended.",
        "content": _events(
            "status", "progress", "partial_image", "succeeded", "failed", "canceled", "aborted", "error"
        ),
    },
    400: _error("`Last-Event-ID` is not an id of these events."),
}
PREVIEW: Responses = {
    **LOOKUP,
    200: {"description": "The file.", "content": _FILES},
    400: _error("`index` or `number` is not a number."),
    404: _error("No such job or preview."),
}
JOB_IMAGE: Responses = {
    **LOOKUP,
    200: {"description": "The file.", "content": _FILES},
    400: _error("`index` is not a number."),
    404: _error("No such job or image, or not drawn yet: then Retry-After is set."),
}
MODEL: Responses = {
    404: _error("No worker ever introduced such a model."),
    503: _error("The queue does not answer; obey Retry-After."),
}
READY: Responses = {
    503: {
        "description": "Nobody can draw, and why.",
        "content": {"application/json": {"example": {"status": "not ready", "reason": "no live worker"}}},
    }
}

_EXAMPLES: dict[str, Example] = {
    "shortest": {"summary": "Only a prompt", "value": {"prompt": "a red apple, 3d style"}},
    "repeatable": {
        "summary": "Three pictures that can be drawn again",
        "value": {"prompt": "a sleeping cat", "n": 3, "seed": 7, "quality": "high", "output_format": "webp"},
    },
    "every dial": {
        "summary": "Every dial of the sampler",
        "value": {
            "prompt": "a rocket, flat style",
            "seed": 7,
            "num_inference_steps": 16,
            "diffusion_steps": 25,
            "guidance_scale": 3.0,
            "guidance_schedule": "linear",
            "temperature": 1.0,
            "order": "halton",
            "diffusion_steps_final": 12,
            "guidance_interval": [0.0, 0.8],
        },
    },
}


def form(schema: type[BaseModel], *files: str, required: list[str]) -> dict[str, Any]:
    """The body of a route that reads its form itself: fields of the schema, and files."""
    described = schema.model_json_schema()
    properties = {name: {"type": "string", "format": "binary"} for name in files} | described["properties"]
    body = {"type": "object", "properties": properties, "required": required}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


RequestBody = Annotated[ImageRequest, Body(openapi_examples=_EXAMPLES)]
