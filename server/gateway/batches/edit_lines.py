"""Lines for /v1/images/edits: the source image and mask come as a file id, a data URL or base64 in the line."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class EditLine:
    """The request of a line, with the references to its images, which are not read yet."""

    request: EditRequest
    image: Any
    mask: Any

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "EditLine":
        """Parse the body of a line.

        Raises:
            RequestError: it is invalid.
        """
        values = dict(body)
        image, mask = values.pop("image", None), values.pop("mask", None)
        images = values.pop("images", None)
        if images is not None:
            if image is not None or not isinstance(images, list) or len(images) != 1:
                raise InvalidRequest("'images' must be a list of one image, without 'image' beside it.", param="images")
            image = images[0]
        return cls(validated(EditRequest, values), image, mask)

    async def load(
        self,
        job_id: str,
        batch: Batch,
        files: FileStore,
        models: dict[str, ModelInfo],
        default: str,
        mapping: ClientMapping,
    ) -> tuple[JobInput, bytes]:
        """Read the images, and return the job and the packed source image.

        Raises:
            RequestError: the images cannot be used, or the request is invalid.
        """
        owner = batch.fields["owner"]
        original = await read_image(self.image, "image", owner, files, batch.id)
        hole = await read_image(self.mask, "mask", owner, files, batch.id)
        async with _ONE_AT_A_TIME:
            job, source, _ = await resolve_edit(self.request, original, hole, job_id, models, default, mapping)
        return job, source
