"""OpenAI's Files API: upload, list, get, delete and download, for the input and the results of batches."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import Field

from server.batch_format import EDITS_URL, FAILURES, RESULTS
from server.errors import (
    BodyTooLarge,
    InvalidRequest,
    JobCanceled,
    RequestError,
    StorageUnavailable,
    UnknownBatch,
    UnknownFile,
)
from server.gateway.api_keys import Caller
from server.gateway.batches.edit_lines import EditLine
from server.gateway.batches.files import MAX_FILE_BYTES
from server.gateway.batches.record import Batch
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.requests.body import FormRoute
from server.gateway.requests.query_params import reject_unknown_query_params
from server.gateway.requests.resolve import warnings_about
from server.gateway.requests.validation import validated
from server.gateway.responses.images import images_response, require_success
from server.gateway.schemas.batches import FileDeleted, FileList, FileObject
from server.gateway.schemas.images import ImageRequest
from server.gateway.schemas.openapi import BATCH_ERRORS, FILE_CONTENT, FILE_ERRORS
from server.jobs import JobRecord

T = TypeVar("T")
router = APIRouter(route_class=FormRoute)
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
UPLOAD_FIELDS = ("file", "purpose", ANCHOR, SECONDS)


@router.post(
    "/v1/files", tags=["batches"], responses=FILE_ERRORS, response_model=FileObject, operation_id="upload_file"
)
async def upload_file(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    file: Annotated[UploadFile, Field(description="JSON lines or an image, at most 32 MiB.")],
    purpose: Annotated[
        Literal["batch", "vision"], Form(description="`batch`, or `vision` for a source image of edits.")
    ],
    anchor: Annotated[Literal["created_at"] | None, Form(alias=ANCHOR, description="Start of the period.")] = None,
    seconds: Annotated[
        int | None, Form(alias=SECONDS, ge=1, description="Lifetime in seconds; at most FLUID_BATCH_TTL_S.")
    ] = None,
) -> dict[str, Any]:
    """Upload the input of a batch, one JSON object per line:
    `{"custom_id": "...", "method": "POST", "url": "/v1/images/generations", "body": {...}}`."""
    for name in await request.form():  # parsed already; FastAPI ignores unknown fields
        if name not in UPLOAD_FIELDS:
            valid = ", ".join(UPLOAD_FIELDS)
            raise InvalidRequest(f"Unknown parameter '{name[:100]}'. Valid parameters: {valid}.", param=name[:100])
    if (anchor is None) != (seconds is None):
        missing = ANCHOR if anchor is None else SECONDS
        raise InvalidRequest(f"'{ANCHOR}' and '{SECONDS}' go together; send both or neither.", param=missing)
    data = await file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BodyTooLarge(f"'file' is larger than {MAX_FILE_BYTES} bytes; split it.", param="file")
    if not data:
        raise InvalidRequest("'file' is empty.", param="file")
    name = (file.filename or "batch.jsonl")[:256]
    return (await services.files.add(caller.name, name, purpose, data, seconds)).to_openai()


@router.get(
    "/v1/files",
    tags=["batches"],
    responses=BATCH_ERRORS,
    response_model=FileList,
    operation_id="list_files",
    dependencies=[Depends(reject_unknown_query_params)],
)
async def list_files(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """List your files, newest first. Files expire after FLUID_BATCH_TTL_S unless deleted earlier."""
    found, has_more = await services.files.list(caller.name, limit, after)
    return {"object": "list", "data": [each.to_openai() for each in found], "has_more": has_more}


@router.get(
    "/v1/files/{file_id}", tags=["batches"], responses=FILE_ERRORS, response_model=FileObject, operation_id="get_file"
)
async def get_file(file_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Get the metadata of an uploaded file, or of a batch's result file."""
    if (found := await _result_file(services, caller, file_id)) is not None:
        batch, _ = found
        about = {"object": "file", "bytes": 0, "filename": f"{file_id}.jsonl", "purpose": "batch_output"}
        return {"id": file_id, "created_at": batch.to_openai()["created_at"], "status": "processed"} | about
    return (await services.files.get(caller.name, file_id)).to_openai()


@router.delete(
    "/v1/files/{file_id}",
    tags=["batches"],
    responses=FILE_ERRORS,
    response_model=FileDeleted,
    operation_id="delete_file",
)
async def delete_file(file_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Delete an uploaded file. A batch that reads it goes on: its bytes stay, and count, until the batch expires."""
    await services.files.delete(caller.name, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get(
    "/v1/files/{file_id}/content",
    tags=["batches"],
    response_class=StreamingResponse,
    responses=FILE_CONTENT,
    operation_id="get_file_content",
)
async def get_file_content(file_id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """Download an uploaded file, or the results of a batch.

    Results can be read while the batch is still running: they hold the lines that have ended so far.
    """
    if (found := await _result_file(services, caller, file_id)) is not None:
        batch, errors = found
        lines = _result_lines(services, batch, errors)
        return StreamingResponse(await _begun(lines), media_type="application/jsonl")
    file = await services.files.get(caller.name, file_id)
    # With a Content-Length, a reader notices when the file is deleted during the download.
    media_type = "application/jsonl" if file.purpose == "batch" else "application/octet-stream"
    length = {"Content-Length": str(file.size_bytes)}
    chunks = await _begun(services.files.chunks(file))
    return StreamingResponse(chunks, media_type=media_type, headers=length)


async def _result_file(services: Services, caller: Caller, file_id: str) -> tuple[Batch, bool] | None:
    """Return the batch of a result file and whether the file holds its errors; None for an uploaded file.

    Raises:
        UnknownFile: the caller has no such batch.
    """
    for prefix, errors in ((RESULTS, False), (FAILURES, True)):
        if file_id.startswith(prefix):
            try:
                return await services.batches.get(caller.name, file_id.removeprefix(prefix)), errors
            except UnknownBatch as error:
                raise UnknownFile(f"No file has the id {file_id[:100]!r}.", param="file_id") from error
    return None


async def _begun(parts: AsyncIterator[T]) -> AsyncIterator[T]:
    """The same parts, of which the first is here already: until it is sent, an error still has a status of its own."""
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        return parts

    async def all_parts() -> AsyncIterator[T]:
        yield first
        async for part in parts:
            yield part

    return all_parts()


async def _result_lines(services: Services, batch: Batch, errors: bool) -> AsyncIterator[str]:
    async for result in services.batches.results(batch, errors=errors):
        line: dict[str, Any] = {"id": batch.job_id(result.number), "custom_id": result.custom_id, "error": None}
        if result.job is not None:
            line["response"] = await _response(services, batch, result.job, result.body)
        elif result.rejection is not None:
            status, body = result.rejection["status"], result.rejection["body"]
            line["response"] = {"status_code": status, "request_id": None, "body": body}
        # ASCII, because many readers also end a line at U+2028 and similar characters.
        yield json.dumps(line, separators=(",", ":")) + "\n"


async def _response(services: Services, batch: Batch, record: JobRecord, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the synchronous route would have answered to this body and job."""
    try:
        require_success(record)
        warnings = await _warnings(services, batch, record, body)
        answer = await images_response(services, record, "b64_json", warnings)
    except JobCanceled:
        canceled = JobCanceled("The batch was canceled or expired before this line was generated.")
        return {"status_code": canceled.status, "request_id": record.id, "body": canceled.body()}
    except StorageUnavailable:  # no result of this line: the download fails, and can be repeated
        raise
    except RequestError as error:
        return {"status_code": error.status, "request_id": record.id, "body": error.body()}
    return {"status_code": 200, "request_id": record.id, "body": answer.model_dump()}


async def _warnings(services: Services, batch: Batch, record: JobRecord, body: Mapping[str, Any]) -> list[str]:
    """The warnings about a line's request, made again instead of stored; none once its model is unknown, and none about
    the images of an edit, which may be gone."""
    try:
        info = (await services.fleet.models()).get(record.input.model)
        request = EditLine.of(body).request if batch.endpoint == EDITS_URL else validated(ImageRequest, body)
        return warnings_about(request, info, record.input) if info else []
    except RequestError:
        return []
