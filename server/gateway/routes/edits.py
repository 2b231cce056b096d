"""POST /v1/images/edits and /v1/images/variations: pictures that start from a picture, in OpenAI's shape."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.datastructures import FormData, UploadFile

from server.errors import InvalidRequest
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests import content_negotiation
from server.gateway.requests.resolve import model_of, resolve
from server.gateway.requests.validation import validated
from server.gateway.responses.synchronous import respond
from server.gateway.schemas import openapi
from server.gateway.schemas.edits import (
    DEFAULT_FEATHER,
    DEFAULT_KEEP,
    EditRequest,
    SourceImageRequest,
    VariationRequest,
)
from server.gateway.schemas.images import ImageRequest, ImagesResponse
from server.images import compositing, uploads
from server.jobs import Edit, JobInput, new_job_id
from server.model_info import ModelInfo

router = APIRouter(tags=["images"])
R = TypeVar("R", bound=SourceImageRequest)
T = TypeVar("T")
#: A decoded picture takes 16 MiB and is copied while it is converted, so that few at a time bound the memory.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
_LISTS = ("guidance_interval",)


@router.post(
    "/v1/images/edits",
    response_model=ImagesResponse,
    responses=openapi.EDIT,
    operation_id="edit_image",
    openapi_extra=openapi.form(EditRequest, "image", "mask", required=["image", "prompt"]),
)
async def edit(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Draw a part of a picture anew, and leave the rest as it is.

    What is transparent in `mask` (or in `image`, without a mask) is drawn; in PNG all other pixels come back
    unchanged, at the size that the model draws. With `stream: true` it is server-sent events: up to `partial_images`
    previews, then the picture. `num_inference_steps` are for the new part. `feather` softens the
    seam, on its inner side.
    """
    async with _form(request) as sent:
        body = content_negotiation.with_format(request, _validated(EditRequest, sent, ("image", "mask")))
        info = await _model(services, body)
        image, mask = _file(sent, "image"), _file(sent, "mask")
        source, drawn, notes = await _decoded(lambda: uploads.with_mask(image, mask, info.image_size))
    tokens = compositing.staying(drawn, info.image_size, info.tokens)
    feather = DEFAULT_FEATHER if body.feather is None else body.feather
    if body.input_fidelity:
        notes.append("'input_fidelity' has no effect here.")
    job, warnings = await _resolved(services, body, info.tokens - sum(tokens))
    data, sha256 = compositing.pack(source, drawn)
    job = replace(job, edit=Edit(new_job_id(), sha256, feather=feather))
    return await _draw(request, services, caller, body, job, data, [*notes, *warnings])


@router.post(
    "/v1/images/variations",
    response_model=ImagesResponse,
    responses=openapi.EDIT,
    operation_id="vary_image",
    openapi_extra=openapi.form(VariationRequest, "image", required=["image"]),
)
async def vary(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """Draw a picture again around a random part of it: `keep` of its tokens stay, other ones for each seed.

    A picture that was drawn here brings its prompt along.
    """
    async with _form(request) as sent:
        body = content_negotiation.with_format(request, _validated(VariationRequest, sent, ("image",)))
        info = await _model(services, body)
        image = _file(sent, "image")
        source, recipe, notes = await _decoded(lambda: uploads.with_recipe(image, info.image_size))
    if not body.prompt:
        prompt = (recipe or {}).get("prompt")
        if not isinstance(prompt, str):
            raise InvalidRequest("'prompt' is missing, and 'image' has none in its metadata. Add one.", param="prompt")
        body = _again(body, prompt)
        notes.append(f"The prompt is that of the picture: {prompt!r}.")
    kept = min(round((DEFAULT_KEEP if body.keep is None else body.keep) * info.tokens), info.tokens - 1)
    job, warnings = await _resolved(services, body, info.tokens - kept)
    data, sha256 = compositing.pack(source, None)
    job = replace(job, edit=Edit(new_job_id(), sha256, kept_tokens=kept))
    return await _draw(request, services, caller, body, job, data, [*notes, *warnings])


# --- reading the form ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """Files of more than a MiB are read onto the disk, not into memory."""
    kind = request.headers.get("content-type", "").split(";")[0].strip()
    if kind != "multipart/form-data":
        raise InvalidRequest(f"The body must be multipart/form-data, not {kind[:100] or 'without a type'}.")
    async with request.form(max_files=4, max_fields=64) as sent:
        yield sent


def _file(sent: FormData, name: str) -> BinaryIO | None:
    """SDKs that can send several pictures call the field `image[]`."""
    files = [value for key in (name, f"{name}[]") for value in sent.getlist(key)]
    if not files:
        return None
    if len(files) > 1:
        raise InvalidRequest(f"'{name}' is there {len(files)} times; send one picture.", param=name)
    if not isinstance(files[0], UploadFile):
        raise InvalidRequest(f"'{name}' must be a file, not text.", param=name)
    return files[0].file


async def _decoded(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, work)


def _validated(schema: type[R], sent: FormData, files: tuple[str, ...]) -> R:
    """Forms carry text only, so that numbers are read from it here, and lists from repeated fields."""
    values: dict[str, Any] = {}
    for key in sent:
        name = key.removesuffix("[]")
        if name in files:
            continue
        given = sent.getlist(key)
        if any(isinstance(value, UploadFile) for value in given):
            raise InvalidRequest(f"'{name[:100]}' must be text, not a file.", param=name[:100])
        if len(given) > 1 and name not in _LISTS:
            raise InvalidRequest(f"'{name[:100]}' is there {len(given)} times; send it once.", param=name[:100])
        values[name] = given if name in _LISTS else given[0]
    for name in schema.unsupported:
        if str(values.pop(name, "")).lower() not in ("", "0", "false", "null"):
            raise InvalidRequest(f"'{name}' is not supported with a picture to start from. Leave it out.", param=name)
    return validated(schema, values, strict=False)


def _again(body: VariationRequest, prompt: str) -> VariationRequest:
    """A prompt out of a file has to pass the same checks as one out of a form."""
    return validated(VariationRequest, body.model_dump(exclude_unset=True) | {"prompt": prompt}, strict=False)


# --- from the form to the answer ----------------------------------------------------------------------------


async def _model(services: Services, body: ImageRequest) -> ModelInfo:
    return model_of(body, await services.fleet.models(), await services.fleet.default_model())


async def _resolved(services: Services, body: ImageRequest, new_tokens: int) -> tuple[JobInput, list[str]]:
    """The job, with no more steps than there are tokens to draw."""
    fleet = services.fleet
    job, warnings = resolve(body, await fleet.models(), await fleet.default_model())
    if job.num_inference_steps <= new_tokens:
        return job, warnings
    if body.num_inference_steps is not None:
        warnings.append(f"'num_inference_steps' is {new_tokens} here: only so many tokens are to be drawn.")
    return replace(job, num_inference_steps=new_tokens), warnings


async def _draw(
    request: Request,
    services: Services,
    caller: Caller,
    body: ImageRequest,
    job: JobInput,
    source: bytes,
    warnings: list[str],
) -> Response:
    asked = f"{body.fingerprint()} {json.dumps(job.edit.recipe() if job.edit else None)}"
    return await respond(request, services, caller, body, job, warnings, asked=asked, kind="image_edit", source=source)
