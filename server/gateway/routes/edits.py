"""POST /v1/images/edits and /v1/images/variations: OpenAI's image routes that start from an uploaded image."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.errors import InvalidRequest
from server.gateway.admission import idempotency_key, submission_of
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests import content_negotiation
from server.gateway.requests.multipart_form import file_field, open_form, validated_form
from server.gateway.requests.resolve import model_of, resolve
from server.gateway.requests.validation import validated
from server.gateway.responses.synchronous import respond
from server.gateway.schemas import openapi
from server.gateway.schemas.edits import DEFAULT_FEATHER, DEFAULT_KEEP, EditRequest, VariationRequest
from server.gateway.schemas.image_responses import ImagesResponse
from server.gateway.schemas.images import ImageRequest
from server.images import compositing, uploads
from server.jobs import Edit, JobInput, new_job_id
from server.model_info import ModelInfo

router = APIRouter(tags=["images"])
T = TypeVar("T")
#: A decoded image takes 16 MiB and is copied during conversion, so a small pool bounds the memory.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")


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
    model's size; with PNG output, every pixel outside the mask is returned unchanged. `num_inference_steps` applies to
    the regenerated part, and `feather` blends its edge, inside the mask.

    With `stream: true` the response is server-sent events: up to `partial_images` previews, then the images.
    """
    async with open_form(request) as form:
        body = validated_form(EditRequest, form, files=("image", "mask"))
        body = content_negotiation.with_format(request, body)
        info = await _model(services, body)
        image, mask = file_field(form, "image"), file_field(form, "mask")
        source, area, warnings = await _decode(lambda: uploads.read_with_mask(image, mask, info.image_size))
    kept = compositing.kept_cells(area, info.image_size, info.tokens)
    feather = DEFAULT_FEATHER if body.feather is None else body.feather
    if body.input_fidelity:
        warnings.append("'input_fidelity' has no effect here.")
    job, more_warnings = await _resolve(services, body, info.tokens - sum(kept))
    data, sha256 = compositing.pack(source, area)
    edit = Edit(new_job_id(), sha256, feather=feather)
    return await _respond_with_edit(request, services, caller, body, job, edit, data, [*warnings, *more_warnings])


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
    is taken from the metadata of an image that was generated here; another image guides alone.
    """
    async with open_form(request) as form:
        body = validated_form(VariationRequest, form, files=("image",))
        body = content_negotiation.with_format(request, body)
        info = await _model(services, body)
        image = file_field(form, "image")
        source, recipe, warnings = await _decode(lambda: uploads.read_with_recipe(image, info.image_size))
    if not body.prompt:
        prompt = (recipe or {}).get("prompt")
        if isinstance(prompt, str) and prompt:
            body = _with_prompt(body, prompt)
            warnings.append(f"The prompt was taken from the image: {prompt!r}.")
        elif info.labels:  # a class-conditional model
            raise InvalidRequest("'prompt' is missing, and the metadata of 'image' has none. Add one.", param="prompt")
        else:  # the default of OpenAI's clients, whose variations have no prompt
            warnings.append("'prompt' is missing, and the metadata of 'image' has none; only the image guides.")
    kept = min(round((DEFAULT_KEEP if body.keep is None else body.keep) * info.tokens), info.tokens - 1)
    job, more_warnings = await _resolve(services, body, info.tokens - kept)
    data, sha256 = compositing.pack(source, None)
    edit = Edit(new_job_id(), sha256, kept_tokens=kept)
    return await _respond_with_edit(request, services, caller, body, job, edit, data, [*warnings, *more_warnings])


async def _decode(work: Callable[[], T]) -> T:
    """Run image decoding off the event loop, a few at a time."""
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, work)


def _with_prompt(body: VariationRequest, prompt: str) -> VariationRequest:
    """Set the prompt and validate again: one from a file has to pass the same checks as one from a form."""
    return validated(VariationRequest, body.model_dump(exclude_unset=True) | {"prompt": prompt}, strict=False)


async def _model(services: Services, body: ImageRequest) -> ModelInfo:
    return model_of(body, await services.fleet.models(), await services.fleet.default_model(), services.mapping)


async def _resolve(services: Services, body: ImageRequest, new_tokens: int) -> tuple[JobInput, list[str]]:
    """Resolve the job, with no more steps than there are tokens to generate."""
    fleet = services.fleet
    job, warnings = resolve(body, await fleet.models(), await fleet.default_model(), services.mapping)
    fixed = (await _model(services, body)).has_fixed("num_inference_steps")  # raster order: one for every token
    if job.sampling.num_inference_steps <= new_tokens or fixed:
        return job, warnings
    if body.num_inference_steps is not None:
        warnings.append(f"'num_inference_steps' was reduced to {new_tokens}, the number of tokens to generate.")
    return replace(job, sampling=replace(job.sampling, num_inference_steps=new_tokens)), warnings


async def _respond_with_edit(
    request: Request,
    services: Services,
    caller: Caller,
    body: ImageRequest,
    job: JobInput,
    edit: Edit,
    source: bytes,
    warnings: list[str],
) -> Response:
    """Submit the job with its source image; both are part of the request's fingerprint."""
    submission = submission_of(
        caller,
        replace(job, edit=edit),
        "sync",
        f"{body.fingerprint()} {json.dumps(edit.recipe())}",
        job_id=edit.source,
        key=idempotency_key(request),
        follow_events=bool(body.stream),
        source=source,
    )
    return await respond(request, services, body, submission, warnings, event_prefix="image_edit")
