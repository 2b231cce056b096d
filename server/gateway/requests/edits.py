"""Edits and variations, resolved: the same for the routes and for the lines of batches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import BinaryIO, TypeVar

from server.errors import InvalidRequest
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.resolve import job_of, model_of, wants_alpha, warnings_about
from server.gateway.requests.validation import validated
from server.gateway.schemas.edits import DEFAULT_FEATHER, DEFAULT_KEEP, EditRequest, VariationRequest
from server.gateway.schemas.images import ImageRequest
from server.images import compositing, uploads
from server.jobs import Edit, JobInput
from server.model_info import ModelInfo

T = TypeVar("T")
#: A decoded image takes 16 MiB and is copied during conversion, so a small pool bounds the memory.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")


async def decode(work: Callable[[], T]) -> T:
    """Run image decoding off the event loop, a few at a time."""
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, work)


async def resolve_edit(
    request: EditRequest,
    image: BinaryIO | None,
    mask: BinaryIO | None,
    job_id: str,
    models: dict[str, ModelInfo],
    default: str,
    mapping: ClientMapping,
) -> tuple[JobInput, bytes, list[str]]:
    """Return the job of this id, its packed source image, and warnings.

    Raises:
        RequestError: the request is invalid, or its images cannot be used.
    """
    info = model_of(request, models, default, mapping)
    alpha, feather = wants_alpha(request, info), DEFAULT_FEATHER if request.feather is None else request.feather
    pixels, area, warnings = await decode(
        lambda: uploads.read_with_mask(image, mask, info.image_size, alpha=alpha, feather=feather)
    )
    new_tokens = info.tokens - sum(compositing.kept_cells(area, info.image_size, info.tokens))
    job, more_warnings = resolve_part(request, new_tokens, models, default, mapping)
    data, sha256 = compositing.pack(pixels, area)
    return replace(job, edit=Edit(job_id, sha256, feather=feather)), data, [*warnings, *more_warnings]


async def resolve_variation(
    request: VariationRequest,
    image: BinaryIO | None,
    job_id: str,
    models: dict[str, ModelInfo],
    default: str,
    mapping: ClientMapping,
) -> tuple[VariationRequest, JobInput, bytes, list[str]]:
    """Return the request with what the image's recipe adds to it, and the rest as `resolve_edit`.

    Raises:
        RequestError: the request is invalid, or its image cannot be used.
    """
    info = model_of(request, models, default, mapping)
    pixels, recipe, warnings = await decode(
        lambda: uploads.read_with_recipe(
            image, info.image_size, lambda recipe: wants_alpha(_with_background(request, recipe, info), info)
        )
    )
    if (asked := _with_background(request, recipe, info)) is not request:
        request = asked
        warnings.append("'background' was taken from the image: transparent.")
    if not request.prompt:
        prompt = (recipe or {}).get("prompt")
        if isinstance(prompt, str) and prompt:
            request = _with_prompt(request, prompt)
            warnings.append(f"The prompt was taken from the image: {prompt!r}.")
        elif info.labels:  # a class-conditional model
            raise InvalidRequest("'prompt' is missing, and the metadata of 'image' has none. Add one.", param="prompt")
        else:  # the default of OpenAI's clients, whose variations have no prompt
            warnings.append("'prompt' is missing, and the metadata of 'image' has none; only the image guides.")
    kept = min(round((DEFAULT_KEEP if request.keep is None else request.keep) * info.tokens), info.tokens - 1)
    job, more_warnings = resolve_part(request, info.tokens - kept, models, default, mapping)
    data, sha256 = compositing.pack(pixels, None)
    job = replace(job, edit=Edit(job_id, sha256, kept_tokens=kept))
    return request, job, data, [*warnings, *more_warnings]


def _with_background(request: VariationRequest, recipe: uploads.Recipe | None, info: ModelInfo) -> VariationRequest:
    """Ask for alpha as the image's recipe did, if the request leaves it open and the result can have it."""
    given = (recipe or {}).get("background")
    if request.background is None and given == "transparent" and info.transparent and request.output_format != "jpeg":
        return request.model_copy(update={"background": "transparent"})
    return request


def _with_prompt(request: VariationRequest, prompt: str) -> VariationRequest:
    """Set the prompt and validate again: one from a file has to pass the same checks as one from a form."""
    return validated(VariationRequest, request.model_dump(exclude_unset=True) | {"prompt": prompt}, strict=False)


def resolve_part(
    request: ImageRequest, new_tokens: int, models: dict[str, ModelInfo], default: str, mapping: ClientMapping
) -> tuple[JobInput, list[str]]:
    """Resolve the job, with no more steps than there are tokens to generate.

    Raises:
        InvalidRequest: as `resolve`.
    """
    info = model_of(request, models, default, mapping)
    job = job_of(request, info, mapping)
    # Raster order has one step for every token.
    if job.sampling.num_inference_steps > new_tokens and not info.has_fixed("num_inference_steps"):
        job = replace(job, sampling=replace(job.sampling, num_inference_steps=new_tokens))
    return job, warnings_about(request, info, job)
