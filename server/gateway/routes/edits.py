"""POST /v1/images/edits and /v1/images/variations: OpenAI's image routes that start from an uploaded image."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.gateway.admission import idempotency_key, submission_of
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests import content_negotiation
from server.gateway.requests.edits import resolve_edit, resolve_variation
from server.gateway.requests.multipart_form import file_field, open_form, validated_form
from server.gateway.responses.synchronous import respond
from server.gateway.schemas import openapi
from server.gateway.schemas.edits import EditRequest, VariationRequest
from server.gateway.schemas.image_responses import ImagesResponse
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobInput, new_job_id

router = APIRouter(tags=["images"])


@router.post(
    "/v1/images/edits",
    response_model=ImagesResponse,
    responses=openapi.EDIT,
    operation_id="edit_image",
    openapi_extra=openapi.form(EditRequest, "image", "mask", required=["image", "prompt"]),
)
async def edit_image(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Regenerate the masked part of an image and keep the rest.

    The transparent area of `mask` (without a mask, of `image` itself) is regenerated; without either, the whole image
    is, and nothing of it is kept. The image is scaled to the
    model's size; with PNG output, every pixel outside the mask is returned unchanged, except that transparent ones are
    put on white unless `background` is transparent. `num_inference_steps` applies to the regenerated part, and
    `feather` blends its edge, inside the mask.

    With `stream: true` the response is server-sent events: up to `partial_images` previews, then the images.
    """
    async with open_form(request) as form:
        body = validated_form(EditRequest, form, files=("image", "mask"))
        body = content_negotiation.with_format(request, body)
        image, mask = file_field(form, "image"), file_field(form, "mask")
        known = await services.fleet.models(), await services.fleet.default_model(), services.mapping
        job, source, warnings = await resolve_edit(body, image, mask, new_job_id(), *known)
    return await _respond_with_edit(request, services, caller, body, job, source, warnings)


@router.post(
    "/v1/images/variations",
    response_model=ImagesResponse,
    responses=openapi.EDIT,
    operation_id="vary_image",
    openapi_extra=openapi.form(VariationRequest, "image", required=["image"]),
)
async def vary_image(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Generate variations of an image around a random part of it.

    `keep` is the share of the image's tokens that stays; each seed keeps different ones. Without `prompt`, the prompt
    is taken from the metadata of an image that was generated here; another image guides alone. So is `background`, if
    the model and the format of the output have alpha.
    """
    async with open_form(request) as form:
        body = validated_form(VariationRequest, form, files=("image",))
        body = content_negotiation.with_format(request, body)
        image = file_field(form, "image")
        known = await services.fleet.models(), await services.fleet.default_model(), services.mapping
        body, job, source, warnings = await resolve_variation(body, image, new_job_id(), *known)
    return await _respond_with_edit(request, services, caller, body, job, source, warnings)


async def _respond_with_edit(
    request: Request,
    services: Services,
    caller: Caller,
    body: ImageRequest,
    job: JobInput,
    source: bytes,
    warnings: list[str],
) -> Response:
    """Submit the job with its source image; both are part of the request's fingerprint."""
    edit = job.edit
    if edit is None:
        raise ValueError("the job has no source image")
    submission = submission_of(
        caller,
        job,
        "sync",
        f"{body.fingerprint()} {json.dumps(edit.recipe())}",
        job_id=edit.source,
        key=idempotency_key(request),
        follow_events=bool(body.stream),
        source=source,
    )
    models = await services.fleet.models()
    submission = services.result_cache.mark(submission, request, models, seeded=body.seed is not None)
    return await respond(request, services, body, submission, warnings, event_prefix="image_edit")
