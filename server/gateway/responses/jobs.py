"""From records to what the caller sees: job object, image data, timing headers."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from server.errors import DeadlineExceeded, InvalidRequest, JobCanceled, JobExpired, JobFailed
from server.gateway.schemas.images import (
    ImageData,
    ImagesResponse,
    InputTokens,
    JobFault,
    JobObject,
    JobOutput,
    JobProgress,
    Metrics,
    QueuePlace,
    Usage,
)
from server.jobs import IMPOSSIBLE, JobRecord, JobState, Output

if TYPE_CHECKING:  # services build on this module
    from fastapi import Request

    from server.gateway.lifespan import Services


def image_url(record: JobRecord, index: int) -> str:
    """Root-relative: right behind any proxy and host name."""
    return f"/v1/jobs/{record.id}/images/{index}"


def public_url(services: Services, request: Request) -> str:
    """What links begin with: where the operator says that the gateway is, else where this request found it."""
    return (services.settings.public_url or str(request.base_url)).rstrip("/")


def preview_url(job_id: str, index: int, number: int) -> str:
    return f"/v1/jobs/{job_id}/images/{index}/previews/{number}"


async def job_object(services: Services, record: JobRecord, warnings: list[str] | None = None) -> JobObject:
    home, steps = f"/v1/jobs/{record.id}", record.input.work
    return JobObject(
        id=record.id,
        status=record.state.value,
        created_at=record.created_at,
        started_at=record.started_at,
        completed_at=record.completed_at,
        expires_at=record.expires_at,
        queue=await _place(services, record),
        progress=JobProgress(step=record.step, steps=steps, fraction=round(record.step / steps, 4)),
        attempt=record.attempt,
        input=asdict(record.input),
        output=[
            JobOutput(
                url=image_url(record, o.index),
                seed=o.seed,
                width=o.width,
                height=o.height,
                format=o.format,
                size_bytes=o.size_bytes,
                sha256=o.sha256,
            )
            for o in record.outputs
        ],
        error=JobFault(**asdict(record.error)) if record.error else None,
        metrics=Metrics.model_validate(record.metrics, from_attributes=True) if record.metrics else None,
        urls={"get": home, "cancel": f"{home}/cancel", "events": f"{home}/events"},
        warnings=warnings or [],
    )


async def _place(services: Services, record: JobRecord) -> QueuePlace:
    place = await services.queue.place(record)
    if place is None:
        return QueuePlace(position=None)
    eta_s = await services.fleet.eta_s(record.input.model, place.work_ahead)
    return QueuePlace(
        position=place.position,
        eta_seconds=None if eta_s is None else round(eta_s, 1),
        is_possible=await services.fleet.serves(record.input.model),
    )


async def usage(services: Services, record: JobRecord) -> Usage:
    """As OpenAI counts it: once for the prompt, whatever the number of pictures."""
    models = await services.fleet.models()
    text = record.metrics.prompt_tokens if record.metrics else 0
    image = record.input.n * (models[record.input.model].tokens if record.input.model in models else 0)
    return Usage(
        input_tokens=text,
        output_tokens=image,
        total_tokens=text + image,
        input_tokens_details=InputTokens(text_tokens=text),
    )


async def handed_over(
    services: Services, record: JobRecord, output: Output, response_format: str, home: str
) -> dict[str, str]:
    """A picture in the form that was asked for: `url`, which begins with `home`, or `b64_json`.

    Raises:
        JobExpired: it was deleted.
    """
    if response_format == "url":
        return {"url": home + image_url(record, output.index)}
    raw = await services.queue.result(record, output)
    if raw is None:
        raise gone(record)
    return {"b64_json": base64.b64encode(raw).decode()}


async def images_response(
    services: Services, record: JobRecord, response_format: str, warnings: list[str], home: str = ""
) -> ImagesResponse:
    """OpenAI's answer, of a job that succeeded.

    Raises:
        JobExpired: its pictures were deleted.
    """
    data = []
    for output in record.outputs:
        form = await handed_over(services, record, output, response_format, home)
        data.append(ImageData(seed=output.seed, url=form.get("url"), b64_json=form.get("b64_json")))
    job = record.input
    return ImagesResponse(
        created=int(record.completed_at or record.created_at),
        data=data,
        output_format=job.output_format,
        size=f"{job.width}x{job.height}",
        quality=job.quality,
        job_id=record.id,
        usage=await usage(services, record),
        metrics=Metrics.model_validate(record.metrics, from_attributes=True),
        warnings=warnings,
    )


def require_success(record: JobRecord) -> None:
    """Turn a terminal state other than success into the error that the synchronous caller gets."""
    if record.error and record.error.code == DeadlineExceeded.code:
        raise DeadlineExceeded(f"Job {record.id} was given up. {record.error.message}")
    if record.state is JobState.CANCELED:
        raise JobCanceled(f"Job {record.id} was canceled before it was done.")
    if record.state is JobState.FAILED:
        why = record.error.message if record.error else "no reason was recorded"
        if record.error and record.error.code == IMPOSSIBLE:
            # Not a 5xx: clients repeat those by themselves, in vain.
            raise InvalidRequest(f"The model cannot draw this: {why}")
        raise JobFailed(f"Job {record.id} failed after {record.attempt} attempts: {why}")


def gone(record: JobRecord) -> JobExpired:
    return JobExpired(f"The pictures of job {record.id} were deleted; draw them again from its seed.")


def told_headers(job_id: str, warnings: list[str]) -> dict[str, str]:
    """Which job it is, and what its caller should know, in ASCII: a JSON list, whose long entries are cut for the sake
    of proxies that buffer a few KiB of headers."""
    headers = {"x-job-id": job_id}
    if warnings:
        headers["x-warnings"] = json.dumps([w if len(w) <= 200 else w[:199] + "…" for w in warnings])
    return headers


def timing_headers(record: JobRecord) -> dict[str, str]:
    if record.metrics is None:
        return {}
    m = record.metrics
    rest = max(0.0, m.total_time - m.queue_time - m.predict_time - m.encode_time)
    stages = {"queue": m.queue_time, "inference": m.predict_time, "encode": m.encode_time, "overhead": rest}
    headers = {f"x-{name}-time-ms": f"{seconds * 1000:.1f}" for name, seconds in stages.items()}
    headers["x-batch-size"] = str(m.batch_size)
    headers |= {"x-kernels": m.kernels} if m.kernels else {}
    headers["Server-Timing"] = ", ".join(f"{k};dur={v * 1000:.1f}" for k, v in stages.items())
    return headers
