"""The job object that callers see, made from a job's record, and the URLs of its images."""

from dataclasses import asdict

from fastapi import Request

from server.gateway.dependencies import Services
from server.gateway.schemas.jobs import JobFault, JobObject, JobOutput, JobProgress, Metrics, QueuePlace
from server.jobs import JobRecord


def image_url(record: JobRecord, index: int) -> str:
    """Return a path without a host, so it is valid behind any proxy."""
    return f"/v1/jobs/{record.id}/images/{index}"


def public_base_url(services: Services, request: Request) -> str:
    """Return the base of absolute links: FLUID_PUBLIC_URL, or else the address this request was sent to."""
    return (services.settings.public_url or str(request.base_url)).rstrip("/")


def preview_url(job_id: str, index: int, number: int) -> str:
    return f"/v1/jobs/{job_id}/images/{index}/previews/{number}"


async def job_object(services: Services, record: JobRecord, warnings: list[str] | None = None) -> JobObject:
    """Build the job object, with its place in the queue."""
    path, steps = f"/v1/jobs/{record.id}", max(1, record.input.work)
    return JobObject(
        id=record.id,
        status=record.state.value,
        created_at=record.created_at,
        started_at=record.started_at,
        completed_at=record.completed_at,
        expires_at=record.expires_at,
        queue=await _queue_place(services, record),
        progress=JobProgress(step=record.step, steps=steps, fraction=round(record.step / steps, 4)),
        attempt=record.attempt,
        input=record.input.parameters(),
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
        urls={"get": path, "cancel": f"{path}/cancel", "events": f"{path}/events"},
        warnings=warnings or [],
    )


async def _queue_place(services: Services, record: JobRecord) -> QueuePlace:
    place = await services.queue.place(record)
    if place is None:
        return QueuePlace(position=None)
    eta_s = await services.fleet.eta_s(record.input.model, place.work_ahead)
    return QueuePlace(
        position=place.position,
        eta_seconds=None if eta_s is None else round(eta_s, 1),
        is_possible=await services.fleet.serves(record.input.model),
    )
