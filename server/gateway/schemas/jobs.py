"""The job object as callers get it."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Metrics(BaseModel):
    """Where the time went, in seconds."""

    queue_time: float = Field(description="From acceptance to the worker.")
    predict_time: float = Field(description="From the worker taking it to the last token.")
    encode_time: float = Field(description="Pixels to files, summed over the pictures.")
    total_time: float
    batch_size: int = Field(description="Most images that shared a step with this request.")
    kernels: str = Field(default="", description="What ran the diffusion head's loop: torch, triton or persistent.")


class JobOutput(BaseModel):
    url: str
    seed: int
    width: int
    height: int
    format: str
    size_bytes: int
    sha256: str


class QueuePlace(BaseModel):
    position: int | None = Field(description="Jobs ahead of this one; null once a worker has it.")
    eta_seconds: float | None = Field(default=None, description="About how long until it begins; null if unknown.")
    is_possible: bool = Field(default=True, description="False: no live worker serves the model now.")


class JobProgress(BaseModel):
    step: int = Field(description="Autoregressive steps done, over all images.")
    steps: int
    fraction: float


class JobFault(BaseModel):
    code: str
    message: str


class JobObject(BaseModel):
    """A job. States: queued, starting, processing, then succeeded, failed, canceled or aborted."""

    id: str
    object: Literal["job"] = "job"
    status: str
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    queue: QueuePlace
    progress: JobProgress
    attempt: int = Field(description="Deliveries to a worker so far.")
    input: dict[str, Any] = Field(description="Every parameter, as resolved.")
    output: list[JobOutput]
    error: JobFault | None = None
    metrics: Metrics | None = None
    urls: dict[str, str]
    warnings: list[str] = Field(default_factory=list)


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    last_id: str | None = Field(description="Send it as `after` to get the next page.")
    has_more: bool
