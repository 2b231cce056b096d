"""OpenAI's answer of a job that succeeded, and the error of one that did not."""

import base64

from server.errors import DeadlineExceeded, InvalidRequest, JobCanceled, JobExpired, JobFailed
from server.gateway.dependencies import Services
from server.gateway.responses.jobs import image_url
from server.gateway.schemas.images import ImageData, ImagesResponse, InputTokens, Usage
from server.gateway.schemas.jobs import Metrics
from server.jobs import IMPOSSIBLE, JobRecord, JobState, Output


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


async def image_payload(
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
        form = await image_payload(services, record, output, response_format, home)
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
