"""Lines for /v1/images/edits: the source image and mask come as a file id, a data URL or base64 in the line."""

import asyncio
import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

from server.errors import BodyTooLarge, InvalidRequest
from server.gateway.batches.files import FileStore
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.edits import resolve_edit
from server.gateway.requests.validation import validated
from server.gateway.schemas.edits import EditRequest
from server.images import uploads
from server.jobs import JobInput
from server.model_info import ModelInfo

#: Batches leave a decoder to the routes.
_ONE_AT_A_TIME = asyncio.Semaphore(1)


async def edit_line(
    body: Mapping[str, Any],
    job_id: str,
    owner: str,
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
    original = await _read(image, "image", owner, files)
    hole = await _read(mask, "mask", owner, files)
    async with _ONE_AT_A_TIME:
        job, source, _ = await resolve_edit(request, original, hole, job_id, models, default, mapping)
    return request, job, source


async def _read(reference: Any, name: str, owner: str, files: FileStore) -> io.BytesIO | None:
    """Return the bytes of {"file_id": ...}, {"image_url": "data:..."} or a string with one of them, or base64."""
    if reference is None:
        return None
    if isinstance(reference, dict):
        if len(reference) != 1 or not reference.keys() <= {"file_id", "image_url"}:
            raise InvalidRequest(f"'{name}' must have one of 'file_id' and 'image_url'.", param=name)
        reference = next(iter(reference.values()))
    if not isinstance(reference, str):
        raise InvalidRequest(f"'{name}' must be a file id, a data URL or base64.", param=name)
    if reference.startswith("file-"):
        if (await files.get(owner, reference)).size_bytes > uploads.MAX_IMAGE_BYTES:
            raise BodyTooLarge(f"'{name}' has more than {uploads.MAX_IMAGE_BYTES} bytes; scale it down.", param=name)
        return io.BytesIO(await files.content(reference))
    if reference.startswith(("http:", "https:")):
        raise InvalidRequest(f"'{name}' cannot be a link: send a file id, a data URL or base64.", param=name)
    try:
        text = reference.partition(",")[2] if reference.startswith("data:") else reference
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"'{name}' is not valid base64.", param=name) from error
