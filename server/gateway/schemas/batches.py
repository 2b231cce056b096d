"""Files and batches as callers see them, in OpenAI's shapes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.batch_format import URL

_FILE_ID, _BATCH_ID = "file-1a2b3c4d5e6f708192a3b4c5", "batch_9d3b1c7e5f2a4b6c8d0e1f2a"
_FILE: dict[str, Any] = {
    "id": _FILE_ID, "object": "file", "bytes": 5120, "created_at": 1767225600, "expires_at": 1767312000,
    "filename": "prompts.jsonl", "purpose": "batch", "status": "processed",
}  # fmt: skip
_BATCH: dict[str, Any] = {
    "id": _BATCH_ID, "object": "batch", "endpoint": URL, "status": "in_progress", "errors": None,
    "input_file_id": _FILE_ID, "completion_window": "24h", "output_file_id": f"file-out-{_BATCH_ID}",
    "error_file_id": None, "created_at": 1767225600, "in_progress_at": 1767225601, "expires_at": 1767312000,
    "finalizing_at": None, "completed_at": None, "failed_at": None, "expired_at": None, "cancelling_at": None,
    "cancelled_at": None, "request_counts": {"total": 100, "completed": 42, "failed": 0}, "metadata": None,
}  # fmt: skip


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class FileObject(BaseModel):
    """An uploaded file, or the results of a batch."""

    model_config = _example(_FILE)

    id: str = Field(description="Send it as `input_file_id`, or download it from /v1/files/{id}/content.")
    object: Literal["file"] = "file"
    bytes: int = Field(description="Size. 0 for results, which are generated while they are downloaded.")
    created_at: int = Field(description="Unix seconds.")
    expires_at: int | None = Field(default=None, description="When the file will be deleted, in Unix seconds.")
    filename: str = Field(description="The name it was uploaded under.")
    purpose: str = Field(description="batch, vision or batch_output.")
    status: str = Field(default="processed", description="Always processed; present for OpenAI clients.")


class FileList(BaseModel):
    """A page of files, newest first."""

    model_config = _example({"object": "list", "data": [_FILE], "has_more": False})

    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool = Field(default=False, description="Whether another page follows.")


class FileDeleted(BaseModel):
    """Confirmation that a file was deleted."""

    model_config = _example({"id": _FILE_ID, "object": "file", "deleted": True})

    id: str
    object: Literal["file"] = "file"
    deleted: bool


class RequestCounts(BaseModel):
    """Lines of a batch, by how they ended."""

    total: int = Field(description="Lines in the input file.")
    completed: int = Field(description="Lines whose images were generated.")
    failed: int = Field(description="Lines that ended with an error.")


class BatchError(BaseModel):
    """Why a line of the input file was rejected."""

    code: str = Field(description="Machine-readable reason.")
    line: int | None = Field(default=None, description="Line of the input file, counted from 1.")
    message: str = Field(description="Human-readable reason.")
    param: str | None = Field(default=None, description="The parameter at fault.")


class BatchErrors(BaseModel):
    """Every error that validation found in the input file."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch. It is validating, then in_progress, and ends as completed, failed, expired or cancelled."""

    model_config = _example(_BATCH)

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str = Field(description="The route that each line is sent to.")
    status: str = Field(
        description="validating, in_progress, completed, failed (the input file was rejected), expired, cancelling or "
        "cancelled."
    )
    errors: BatchErrors | None = Field(description="Why the whole input file was rejected.")
    input_file_id: str = Field(description="The uploaded file with one request per line.")
    completion_window: str = Field(description="Lines that are not done within this time are canceled.")
    output_file_id: str | None = Field(
        description="Results. The file can be read at any time and has the lines that are done by then."
    )
    error_file_id: str | None = Field(description="Lines that ended with an error.")
    created_at: int = Field(description="Unix seconds, as all the times below.")
    in_progress_at: int | None = Field(description="When validation succeeded.")
    expires_at: int | None = Field(description="When lines that are not done will be canceled.")
    finalizing_at: int | None = Field(description="Present for OpenAI clients.")
    completed_at: int | None = Field(description="When the last line ended.")
    failed_at: int | None = Field(description="When the input file was rejected.")
    expired_at: int | None = Field(description="When the completion window ended.")
    cancelling_at: int | None = Field(description="When cancellation was requested.")
    cancelled_at: int | None = Field(description="When the last line was canceled.")
    request_counts: RequestCounts
    metadata: dict[str, str] | None = Field(description="Your own labels, as sent.")


class BatchList(BaseModel):
    """A page of batches, newest first."""

    model_config = _example(
        {"object": "list", "data": [_BATCH], "has_more": False, "first_id": _BATCH_ID, "last_id": _BATCH_ID}
    )

    object: Literal["list"] = "list"
    data: list[BatchObject]
    has_more: bool = Field(description="Whether another page follows.")
    first_id: str | None = Field(description="Id of the first batch on this page.")
    last_id: str | None = Field(description="Send it as `after` to get the next page.")
