"""OpenAI's Files routes: upload, list, look at, delete, download."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import Field

from server.batch_format import FAILURES, RESULTS
from server.errors import BodyTooLarge, InvalidRequest, JobCanceled, RequestError, UnknownFile
from server.gateway.api_keys import Caller
from server.gateway.batches.files import MAX_FILE_BYTES
from server.gateway.batches.record import Batch
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.responses.images import images_response, require_success
from server.gateway.schemas.batches import FileDeleted, FileList, FileObject
from server.gateway.schemas.openapi import BATCH_ERRORS, FILE_CONTENT, FILE_ERRORS
from server.jobs import JobRecord

router = APIRouter()
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
UPLOAD_FIELDS = ("file", "purpose", ANCHOR, SECONDS)


@router.post(
    "/v1/files", tags=["batches"], responses=FILE_ERRORS, response_model=FileObject, operation_id="upload_file"
)
async def upload(
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    file: Annotated[UploadFile, Field(description="JSON lines, 32 MiB at most.")],
    purpose: Annotated[Literal["batch"], Form(description="Only batches have files here.")],
    anchor: Annotated[Literal["created_at"] | None, Form(alias=ANCHOR, description="From when it is counted.")] = None,
    seconds: Annotated[
        int | None, Form(alias=SECONDS, ge=1, description="Delete it so long after that; FLUID_BATCH_TTL_S at most.")
    ] = None,
) -> dict[str, Any]:
    """The input of a batch: {"custom_id": ..., "method": "POST", "url": "/v1/images/generations", "body": {...}}."""
    for name in await request.form():  # read already; FastAPI ignores what it does not know
        if name not in UPLOAD_FIELDS:
            valid = ", ".join(UPLOAD_FIELDS)
            raise InvalidRequest(f"Unknown parameter '{name[:100]}'. Valid parameters: {valid}.", param=name[:100])
    if (anchor is None) != (seconds is None):
        missing = ANCHOR if anchor is None else SECONDS
        raise InvalidRequest(f"'{ANCHOR}' and '{SECONDS}' go together; send both or none.", param=missing)
    data = await file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BodyTooLarge(f"'file' has more than {MAX_FILE_BYTES} bytes; split it.", param="file")
    if not data:
        raise InvalidRequest("'file' is empty.", param="file")
    name = (file.filename or "batch.jsonl")[:256]
    return (await services.files.add(caller.name, name, purpose, data, seconds)).view()


@router.get("/v1/files", tags=["batches"], responses=BATCH_ERRORS, response_model=FileList, operation_id="list_files")
async def list_files(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """Newest first; what is not deleted goes after FLUID_BATCH_TTL_S."""
    found, has_more = await services.files.list(caller.name, limit, after)
    return {"object": "list", "data": [each.view() for each in found], "has_more": has_more}


@router.get(
    "/v1/files/{file_id}", tags=["batches"], responses=FILE_ERRORS, response_model=FileObject, operation_id="get_file"
)
async def get_file(file_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """What is known of a file, or of a batch's results."""
    if (found := await _results_of(services, caller, file_id)) is not None:
        batch, _ = found
        view = {"object": "file", "bytes": 0, "filename": f"{file_id}.jsonl", "purpose": "batch_output"}
        return {"id": file_id, "created_at": batch.view()["created_at"], "status": "processed"} | view
    return (await services.files.get(caller.name, file_id)).view()


@router.delete(
    "/v1/files/{file_id}",
    tags=["batches"],
    responses=FILE_ERRORS,
    response_model=FileDeleted,
    operation_id="delete_file",
)
async def delete_file(file_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Of a batch that was validated it is not needed any more."""
    await services.files.delete(caller.name, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get(
    "/v1/files/{file_id}/content",
    tags=["batches"],
    response_class=StreamingResponse,
    responses=FILE_CONTENT,
    operation_id="get_file_content",
)
async def content(file_id: str, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """Results may be read at any time: what has ended by then is there."""
    if (found := await _results_of(services, caller, file_id)) is not None:
        batch, errors = found
        return StreamingResponse(_lines(services, batch, errors), media_type="application/jsonl")
    file = await services.files.get(caller.name, file_id)
    # With the length, so that who reads while it is deleted sees that the end is missing.
    length = {"Content-Length": str(file.size_bytes)}
    return StreamingResponse(services.files.pieces(file), media_type="application/jsonl", headers=length)


async def _results_of(services: Services, caller: Caller, file_id: str) -> tuple[Batch, bool] | None:
    """The batch of a file of results, and whether of those that failed; None if it is another file."""
    for prefix, errors in ((RESULTS, False), (FAILURES, True)):
        if file_id.startswith(prefix):
            try:
                return await services.batches.get(caller.name, file_id.removeprefix(prefix)), errors
            except RequestError as error:
                raise UnknownFile(f"No file has the id {file_id[:100]!r}.", param="file_id") from error
    return None


async def _lines(services: Services, batch: Batch, errors: bool) -> AsyncIterator[str]:
    async for number, custom_id, record, why in services.batches.results(batch, errors=errors):
        line: dict[str, Any] = {"id": batch.job_id(number), "custom_id": custom_id, "error": None}
        if record is None:
            refusal = json.loads(why)
            line["response"] = {"status_code": refusal["status"], "request_id": None, "body": refusal["body"]}
        else:
            line["response"] = await _response(services, record)
        # In ASCII: many readers end a line at U+2028 and its like as well.
        yield json.dumps(line, separators=(",", ":")) + "\n"


async def _response(services: Services, record: JobRecord) -> dict[str, Any]:
    try:
        require_success(record)
        answer = await images_response(services, record, "b64_json", [])
    except JobCanceled:
        told = JobCanceled("The batch was canceled, or had expired, before this line was drawn.")
        return {"status_code": told.status, "request_id": record.id, "body": told.body()}
    except RequestError as error:
        return {"status_code": error.status, "request_id": record.id, "body": error.body()}
    return {"status_code": 200, "request_id": record.id, "body": answer.model_dump()}
