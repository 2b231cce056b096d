"""Multipart forms of the routes that start from an uploaded image: files, and text fields validated by a schema."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, TypeVar

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartParser

from server.errors import InvalidRequest
from server.gateway.middleware.body_limit import UPLOAD_LIMITS
from server.gateway.requests.body import check_form, told_of_disconnects
from server.gateway.requests.validation import validated
from server.gateway.schemas.edits import SourceImageRequest

R = TypeVar("R", bound=SourceImageRequest)
_LIST_FIELDS = ("guidance_interval",)


def keep_uploads_in_memory() -> None:
    """Let no upload of this process use the folder for temporary files, which may be read-only or full.

    Starlette spools files of more than 1 MiB, and has no other way to be told. BodyLimit bounds what one request holds.
    """
    MultiPartParser.spool_max_size = max(UPLOAD_LIMITS.values())


@asynccontextmanager
async def open_form(request: Request) -> AsyncIterator[FormData]:
    """Read the form; its files are in memory until the context ends.

    Raises:
        InvalidRequest: the body is compressed, not multipart/form-data, or breaks off.
    """
    check_form(request)
    with told_of_disconnects():
        form = await request.form(max_files=4, max_fields=64)
    try:
        yield form
    finally:
        await form.close()
    request.state.body_released()  # the response may take minutes


def file_field(form: FormData, name: str) -> BinaryIO | None:
    """Return the one file of a field, or None; SDKs that can send several images call the field `name[]`.

    Raises:
        InvalidRequest: the field is repeated, or is not a file.
    """
    files = [value for key in (name, f"{name}[]") for value in form.getlist(key)]
    if not files:
        return None
    if len(files) > 1:
        raise InvalidRequest(f"'{name}' was sent {len(files)} times; send one image.", param=name)
    if not isinstance(files[0], UploadFile):
        raise InvalidRequest(f"'{name}' must be a file, not text.", param=name)
    return files[0].file


def validated_form(schema: type[R], form: FormData, *, files: tuple[str, ...]) -> R:
    """Validate the text fields; numbers are parsed from text, and lists from repeated fields.

    Raises:
        InvalidRequest: a field is unknown, repeated, a file, not supported, or out of range.
    """
    values: dict[str, Any] = {}
    for key in form:
        name = key.removesuffix("[]")
        if name in files:
            continue
        sent = form.getlist(key)
        if any(isinstance(value, UploadFile) for value in sent):
            raise InvalidRequest(f"'{name[:100]}' must be text, not a file.", param=name[:100])
        if len(sent) > 1 and name not in _LIST_FIELDS:
            raise InvalidRequest(f"'{name[:100]}' was sent {len(sent)} times; send it once.", param=name[:100])
        values[name] = sent if name in _LIST_FIELDS else sent[0]
    for name in schema.unsupported:
        if str(values.pop(name, "")).lower() not in ("", "0", "false", "null"):
            raise InvalidRequest(f"'{name}' is not supported with an uploaded image. Leave it out.", param=name)
    return validated(schema, values, strict=False)
