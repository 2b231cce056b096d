"""POST /v1/responses: the image_generation tool of OpenAI's Responses API, on the same jobs as the image routes."""

import json
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from server.gateway.admission import idempotency_key, submission_of
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests.body import JsonRoute
from server.gateway.requests.edits import resolve_edit
from server.gateway.requests.image_references import read_image
from server.gateway.requests.openai_responses import ToolCall, read_call
from server.gateway.requests.resolve import resolve
from server.gateway.responses import sse
from server.gateway.responses.headers import warning_headers
from server.gateway.responses.openai_responses import ResponseView, response_events
from server.gateway.responses.synchronous import check_stream_params, enqueue_and_wait, open_stream, result_headers
from server.gateway.schemas.edits import EditRequest
from server.gateway.schemas.openai_responses import ResponseObject, ResponsesRequest
from server.gateway.schemas.openapi import RESPONSES
from server.jobs import JobInput, new_job_id

router = APIRouter(tags=["images"], route_class=JsonRoute)


@router.post("/v1/responses", response_model=ResponseObject, responses=RESPONSES, operation_id="create_response")
async def create_response(
    request: Request, body: Annotated[ResponsesRequest, Body()], services: ServicesDep, caller: CallerDep
) -> Response:
    """Generate or edit an image by the `image_generation` tool of OpenAI's Responses API.

    The text of `input` is the prompt as it stands; an image in it is edited. No text model takes part: other tools,
    stored responses and conversations are refused by name.

    With `stream: true` the response is server-sent events: `response.created`, the call's
    `response.image_generation_call.*` with up to `partial_images` previews, and `response.completed`.
    """
    call, key, job_id = read_call(body), idempotency_key(request), new_job_id()
    check_stream_params(call.request, wants_file=False)
    models = await services.fleet.models()
    call, unknown = _with_known_model(services, body, call, set(models))
    job, source, warnings = await _resolve(services, call, caller.name, job_id)
    warnings = unknown + warnings
    fingerprint = call.request.fingerprint() + (f" {json.dumps(job.edit.recipe())}" if job.edit else "")
    submission = submission_of(
        caller, job, "sync", fingerprint, job_id=job_id, key=key, follow_events=bool(body.stream), source=source
    )
    submission = services.result_cache.mark(submission, request, models, seeded=call.request.seed is not None)
    if body.stream:
        slot, accepted = await open_stream(services, submission)
        view = ResponseView(body, job, accepted.job_id, call.action, warnings, accepted.created_at)
        events = response_events(services, view, accepted.outcome, keep=bool(key))
        headers = services.result_cache.headers(submission, accepted) | warning_headers(accepted.job_id, warnings)
        return sse.response(events, slot, headers)
    record, accepted = await enqueue_and_wait(request, services, submission)
    view = ResponseView(body, record.input, record.id, call.action, warnings, record.created_at)
    response = await view.completed(services, record)
    headers = result_headers(services, submission, record, accepted, warnings)
    return Response(response.model_dump_json(), media_type="application/json", headers=headers)


def _with_known_model(
    services: Services, body: ResponsesRequest, call: ToolCall, models: set[str]
) -> tuple[ToolCall, list[str]]:
    """Leave out the name of a text model, which the body's `model` is in code written for OpenAI."""
    name = body.model
    if not name or body.tools[0].get("model") or name in models or name in services.mapping.aliases:
        return call, []
    warning = f"'model' {name[:100]} is not served here, and no text model takes part; the default model generates."
    return replace(call, request=call.request.model_copy(update={"model": None})), [warning]


async def _resolve(
    services: Services, call: ToolCall, owner: str, job_id: str
) -> tuple[JobInput, bytes | None, list[str]]:
    """Return the job, the packed source image of an edit, and warnings."""
    known = await services.fleet.models(), await services.fleet.default_model(), services.mapping
    if not isinstance(call.request, EditRequest):
        job, warnings = resolve(call.request, *known)
        return job, None, warnings
    image = await read_image(call.image, "input_image", owner, services.files)
    mask = await read_image(call.mask, "input_image_mask", owner, services.files)
    return await resolve_edit(call.request, image, mask, job_id, *known)
