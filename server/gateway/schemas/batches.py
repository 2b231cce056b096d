"""What files, batches and models look like from outside: OpenAI's shapes."""

from typing import Literal

from pydantic import BaseModel, Field


class FileObject(BaseModel):
    """An uploaded file, or the results of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="0 of results: they are written while they are read.")
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str = Field(description="batch or batch_output")
    status: str = "processed"


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool = False


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    code: str
    line: int | None = None
    message: str
    param: str | None = None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """States: validating, in_progress, then completed, failed, expired, or cancelling and cancelled."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    status: str
    errors: BatchErrors | None = Field(description="Why the whole file was refused.")
    input_file_id: str
    completion_window: str
    output_file_id: str | None = Field(description="May be read at any time: what has ended by then is there.")
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None
