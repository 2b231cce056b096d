"""OpenAI's image response for a job that succeeded, and the error for one that did not."""

import base64

from server.errors import DeadlineExceeded, InvalidRequest, JobCanceled, JobExpired, JobFailed, NoWorkers
from server.gateway.dependencies import Services
from server.gateway.responses.jobs import image_url
from server.gateway.schemas.image_responses import ImageData, ImagesResponse, InputTokens, Usage
from server.gateway.schemas.jobs import Metrics
from server.jobs import IMPOSSIBLE, JobRecord, JobState, Output


async def usage(services: Services, record: JobRecord) -> Usage:
    """Count tokens as OpenAI does: the prompt once, whatever the number of images."""
    try:
        info = (await services.fleet.models()).get(record.input.model)
    except NoWorkers:  # the last model was taken away, and the image is there
        info = None
    text = record.metrics.prompt_tokens if record.metrics else 0
    image = record.input.n * (info.tokens if info else 0)
    return Usage(
        input_tokens=text,
        output_tokens=image,
        total_tokens=text + image,
        input_tokens_details=InputTokens(text_tokens=text),
    )


async def image_payload(
    services: Services, record: JobRecord, output: Output, response_format: str, base_url: str
) -> dict[str, str]:
    """Return one image as `{"url": ...}`, under `base_url` unless it is presigned, or as `{"b64_json": ...}`.

    Raises:
        JobExpired: the image was deleted.
    """
    if response_format == "url":
        settings, store = services.settings, services.queue.store
        if settings.result_links == "presigned" and output.location and store is not None:
            return {"url": await store.link(output.location, settings.link_ttl_s)}
        return {"url": base_url + await services.links.sign(image_url(record, output.index))}
    raw = await services.queue.result(record, output)
    if raw is None:
        raise image_expired(record)
    return {"b64_json": base64.b64encode(raw).decode()}


async def images_response(
    services: Services, record: JobRecord, response_format: str, warnings: list[str], base_url: str = ""
) -> ImagesResponse:
    """Build OpenAI's response for a job that succeeded.

    Raises:
        JobExpired: its images were deleted.
    """
    data = []
    for output in record.outputs:
        payload = await image_payload(services, record, output, response_format, base_url)
        data.append(ImageData(seed=output.seed, url=payload.get("url"), b64_json=payload.get("b64_json")))
    job = record.input
    return ImagesResponse(
        created=int(record.completed_at or record.created_at),
        data=data,
        output_format=job.output_format,
        size=f"{job.width}x{job.height}",
        quality=job.quality,
        background=job.background,
        job_id=record.id,
        usage=await usage(services, record),
        metrics=Metrics.model_validate(record.metrics, from_attributes=True),
        warnings=warnings,
    )


def require_success(record: JobRecord) -> None:
    """Raise the error that a synchronous caller gets for a job that ended without success.

    Raises:
        DeadlineExceeded, JobCanceled, InvalidRequest, JobFailed: depending on the job's state and error.
    """
    if record.error and record.error.code == DeadlineExceeded.code:
        raise DeadlineExceeded(f"Job {record.id} was abandoned. {record.error.message}")
    if record.state is JobState.CANCELED:
        raise JobCanceled(f"Job {record.id} was canceled before it finished.")
    if record.state is JobState.FAILED:
        reason = record.error.message if record.error else "no reason was recorded"
        if record.error and record.error.code == IMPOSSIBLE:
            # Not a 5xx: clients retry those automatically, and a retry cannot help here.
            raise InvalidRequest(f"The model cannot generate this: {reason}")
        raise JobFailed(f"Job {record.id} failed after {record.attempt} attempts: {reason}")


def image_expired(record: JobRecord) -> JobExpired:
    """Build the error for an image that was deleted after its time to live."""
    return JobExpired(f"The images of job {record.id} have expired; generate them again with the same seed.")
