"""The job object that callers get."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JOB_ID = "job_5f0c2d1e9b7a4c3d8e6f1a2b"  # of the examples in /openapi.json
METRICS: dict[str, Any] = {
    "queue_time": 0.004, "predict_time": 0.412, "encode_time": 0.003, "total_time": 0.423, "batch_size": 3,
    "kernels": "torch",
}  # fmt: skip
QUEUED: dict[str, Any] = {
    "id": JOB_ID, "object": "job", "status": "queued", "created_at": 1767225600.0, "started_at": None,
    "completed_at": None, "expires_at": None,
    "queue": {"position": 2, "eta_seconds": 1.3, "is_possible": True},
    "progress": {"step": 0, "steps": 24, "fraction": 0.0}, "attempt": 0,
    "input": {"prompt": "a red apple, 3d style", "model": "atlas-128", "n": 1, "seed": 7, "quality": "medium"},
    "output": [], "error": None, "metrics": None,
    "urls": {
        "get": f"/v1/jobs/{JOB_ID}", "cancel": f"/v1/jobs/{JOB_ID}/cancel", "events": f"/v1/jobs/{JOB_ID}/events",
    },
    "warnings": [],
}  # fmt: skip
SUCCEEDED: dict[str, Any] = QUEUED | {
    "status": "succeeded", "started_at": 1767225600.004, "completed_at": 1767225600.423, "expires_at": 1767229200.423,
    "queue": {"position": None, "eta_seconds": None, "is_possible": True},
    "progress": {"step": 24, "steps": 24, "fraction": 1.0}, "attempt": 1,
    "output": [{
        "url": f"/v1/jobs/{JOB_ID}/images/0", "seed": 7, "width": 128, "height": 128, "format": "png",
        "size_bytes": 6202, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    }],
    "metrics": METRICS,
}  # fmt: skip


class Metrics(BaseModel):
    """Where the time went, in seconds."""

    queue_time: float = Field(description="From acceptance until a worker took the job.")
    predict_time: float = Field(description="From the worker taking the job to the last token.")
    encode_time: float = Field(description="Encoding pixels as image files, summed over the images.")
    total_time: float = Field(description="From acceptance until the job ended.")
    batch_size: int = Field(description="Most images that shared one decoding step with this request.")
    kernels: str = Field(default="", description="Implementation of the diffusion head's loop: torch or triton.")


class JobOutput(BaseModel):
    """One generated image."""

    url: str = Field(description="Path of the image file, until the job expires.")
    seed: int = Field(description="Seed of this image. Send it with the same parameters to get the same image again.")
    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")
    format: str = Field(description="png, webp or jpeg.")
    size_bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="SHA-256 of the file, in hexadecimal.")


class QueuePlace(BaseModel):
    """Position in the queue, and the expected wait."""

    position: int | None = Field(description="Jobs ahead of this one; null once a worker has taken it.")
    eta_seconds: float | None = Field(
        default=None, description="Estimated seconds until the job starts; null if unknown."
    )
    is_possible: bool = Field(default=True, description="False while no live worker serves the model.")


class JobProgress(BaseModel):
    """Decoding progress over all images of the job."""

    step: int = Field(description="Autoregressive steps done, over all images.")
    steps: int = Field(description="Autoregressive steps in total, over all images.")
    fraction: float = Field(description="step / steps, from 0 to 1.")


class JobFault(BaseModel):
    """Why the job failed or was aborted."""

    code: str = Field(description="Machine-readable reason.")
    message: str = Field(description="Human-readable reason.")


class JobObject(BaseModel):
    """A job. It is queued, starting, then processing, and ends as succeeded, failed, canceled or aborted."""

    model_config = ConfigDict(json_schema_extra={"examples": [SUCCEEDED, QUEUED]})

    id: str = Field(description="Id of the job: chosen by the service, or by you with PUT /v1/jobs/{job_id}.")
    object: Literal["job"] = "job"
    status: str = Field(
        description="queued, starting, processing, succeeded, failed, canceled, or aborted (its deadline passed)."
    )
    created_at: float = Field(description="When the job was accepted, in Unix seconds.")
    started_at: float | None = Field(default=None, description="When a worker took the job, in Unix seconds.")
    completed_at: float | None = Field(default=None, description="When the job ended, in Unix seconds.")
    expires_at: float | None = Field(default=None, description="When the result will be deleted, in Unix seconds.")
    queue: QueuePlace
    progress: JobProgress
    attempt: int = Field(description="Attempts so far: how often a worker has taken the job.")
    input: dict[str, Any] = Field(description="Every parameter of the request, with defaults resolved.")
    output: list[JobOutput] = Field(description="The images, once the job has succeeded.")
    error: JobFault | None = Field(default=None, description="Why the job failed or was aborted.")
    metrics: Metrics | None = Field(default=None, description="Timings, once the job has succeeded.")
    urls: dict[str, str] = Field(description="Paths to get, cancel and follow this job.")
    warnings: list[str] = Field(
        default_factory=list,
        description="What was mapped or had no effect, and what the model does not know of the prompts.",
    )


class JobList(BaseModel):
    """A page of jobs, newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"object": "list", "data": [SUCCEEDED], "last_id": JOB_ID, "has_more": False}]}
    )

    object: Literal["list"] = "list"
    data: list[JobObject]
    last_id: str | None = Field(description="Send it as `after` to get the next page.")
    has_more: bool = Field(description="Whether another page follows.")
