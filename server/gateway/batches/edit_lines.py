"""Lines for /v1/images/edits: the source image and mask come as a file id, a data URL or base64 in the line."""

import asyncio
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import Batch
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.edits import resolve_edit
from server.gateway.requests.image_references import read_image
from server.gateway.requests.validation import validated
from server.gateway.schemas.edits import EditRequest
from server.jobs import JobInput
from server.model_info import ModelInfo

#: Batches leave a decoder to the routes.
_ONE_AT_A_TIME = asyncio.Semaphore(1)


async def edit_line(
    body: Mapping[str, Any],
    job_id: str,
    batch: Batch,
    files: FileStore,
    models: dict[str, ModelInfo],
    default: str,
    mapping: ClientMapping,
) -> tuple[EditRequest, JobInput, bytes]:
    """Return the request of a line, its job and the packed source image.

    Raises:
        RequestError: the line is invalid, or its images cannot be used.
    """
    values = dict(body)
    image, mask = values.pop("image", None), values.pop("mask", None)
    images = values.pop("images", None)
    if images is not None:
        if image is not None or not isinstance(images, list) or len(images) != 1:
            raise InvalidRequest("'images' must be a list of one image, without 'image' beside it.", param="images")
        image = images[0]
    request = validated(EditRequest, values)
    owner = batch.fields["owner"]
    original = await read_image(image, "image", owner, files, batch.id)
    hole = await read_image(mask, "mask", owner, files, batch.id)
    async with _ONE_AT_A_TIME:
        job, source, _ = await resolve_edit(request, original, hole, job_id, models, default, mapping)
    return request, job, source
