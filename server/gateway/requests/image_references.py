"""Images that a JSON body refers to: by a file id, as a data URL, or as base64."""

import base64
import binascii
import io
from typing import Any

from server.errors import BodyTooLarge, InvalidRequest, UnknownFile
from server.gateway.batches.files import FileStore
from server.images import uploads

MAX_ID = 100  # characters of a file id; ours have fewer


async def read_image(reference: Any, name: str, owner: str, files: FileStore, batch_id: str = "") -> io.BytesIO | None:
    """Return the bytes of {"file_id": ...}, {"image_url": "data:..."} or a string with one of them, or base64.

    Args:
        batch_id: the batch whose line refers to the image; it keeps files that its lines name.
    """
    if reference is None:
        return None
    if isinstance(reference, dict):
        if len(reference) != 1 or not reference.keys() <= {"file_id", "image_url"}:
            raise InvalidRequest(f"'{name}' must have one of 'file_id' and 'image_url'.", param=name)
        reference = next(iter(reference.values()))
    if not isinstance(reference, str):
        raise InvalidRequest(f"'{name}' must be a file id, a data URL or base64.", param=name)
    if reference.startswith("file-"):
        if len(reference) > MAX_ID:  # a key of megabytes would hold up the commands of others
            raise UnknownFile(f"No file has the id {reference[:MAX_ID]!r}….", param=name)
        if await files.size_of(owner, reference, batch_id) > uploads.MAX_IMAGE_BYTES:
            raise BodyTooLarge(f"'{name}' has more than {uploads.MAX_IMAGE_BYTES} bytes; scale it down.", param=name)
        return io.BytesIO(await files.content(reference))
    if reference.startswith(("http:", "https:")):
        raise InvalidRequest(f"'{name}' cannot be a link: send a file id, a data URL or base64.", param=name)
    try:
        text = reference.partition(",")[2] if reference.startswith("data:") else reference
        return io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"'{name}' is not valid base64.", param=name) from error
