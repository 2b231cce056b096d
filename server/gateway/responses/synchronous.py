"""Queue a job, wait for it, and respond in the requested form: JSON, the image file, or events."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response

from server.errors import DeadlineExceeded, InvalidRequest, JobCanceled
from server.gateway.admission import accept
from server.gateway.dependencies import Services
from server.gateway.requests import content_negotiation
from server.gateway.responses import image_stream, sse
from server.gateway.responses.headers import timing_headers, warning_headers
from server.gateway.responses.images import image_expired, images_response, require_success
from server.gateway.responses.jobs import public_base_url
from server.gateway.schemas.images import ImageRequest
from server.images.codec import MIME
from server.jobs import JobRecord
from server.queue.job_queue import Accepted, Outcome, Submission
from server.queue.watcher import Waiter


async def respond(
    request: Request,
    services: Services,
    body: ImageRequest,
    submission: Submission,
    warnings: list[str],
    *,
    event_prefix: str = "image_generation",
) -> Response:
    """Queue the job and respond in the requested form: events, the image file, or JSON.

    Args:
        event_prefix: first part of the event names, which differs between OpenAI's routes.

    Raises:
        RequestError: the request is rejected, or the job ended without success.
    """
    job = submission.job
    wants_file = content_negotiation.wants_image_bytes(request, job.n)
    check_stream_params(body, wants_file=wants_file)
    response_format = body.response_format or services.mapping.default_response_format(
        body.model, stream=bool(body.stream)
    )
    base_url = public_base_url(services, request) if response_format == "url" else ""
    if body.stream:
        slot, accepted = await open_stream(services, submission)
        events = image_stream.image_events(
            services,
            accepted.job_id,
            response_format,
            keep=bool(submission.key),
            cached=accepted.outcome is Outcome.CACHED,
            event_prefix=event_prefix,
            base_url=base_url,
            warnings=warnings,
        )
        headers = services.result_cache.headers(submission, accepted)
        return sse.response(events, slot, headers | warning_headers(accepted.job_id, warnings))
    record, accepted = await enqueue_and_wait(request, services, submission)
    headers = result_headers(services, submission, record, accepted, warnings)
    if wants_file:
        return await _file_response(services, record, headers)
    response = await images_response(services, record, response_format, warnings, base_url)
    return Response(response.model_dump_json(), media_type="application/json", headers=headers)


async def open_stream(services: Services, submission: Submission) -> tuple[sse.StreamSlot, Accepted]:
    """Take a slot for an event stream and queue the job that it will show."""
    slot = services.streams.open(submission.job.owner)
    try:
        with _orphans_end(services, submission):
            return slot, await accept(services, submission, needs_worker=True)
    except BaseException:
        slot.close()
        raise


def result_headers(
    services: Services, submission: Submission, record: JobRecord, accepted: Accepted, warnings: list[str]
) -> dict[str, str]:
    """The headers of a response with images; the times of a cached job are not those of this request."""
    headers = {} if accepted.outcome is Outcome.CACHED else timing_headers(record)
    return headers | warning_headers(record.id, warnings) | services.result_cache.headers(submission, accepted)


async def enqueue_and_wait(request: Request, services: Services, submission: Submission) -> tuple[JobRecord, Accepted]:
    """Queue the job, or find the one that the same request created before or that has its images, and wait for its
    success."""
    job_id = submission.job_id
    with services.watcher.expect(job_id) as waiter, _orphans_end(services, submission):
        waiter.known, submission = submission.job, replace(submission, waiter=services.watcher.name)
        accepted = await accept(services, submission, needs_worker=True)
        if accepted.job_id == job_id:
            record = await _wait(request, services, job_id, waiter, keep=bool(submission.key))
    if accepted.record is not None:
        record = accepted.record
    elif accepted.job_id != job_id:
        with services.watcher.expect(accepted.job_id) as waiter:
            waiter.event.set()  # check at once: the job may have ended already
            record = await _wait(request, services, accepted.job_id, waiter, keep=True)
    require_success(record)
    return record, accepted


def _orphans_end(services: Services, submission: Submission) -> AbstractContextManager[None]:
    """Let an outage of Redis end the job as well, unless the caller has a key to find it by."""
    return nullcontext() if submission.key else services.watcher.no_orphans(submission.job_id)


async def _wait(request: Request, services: Services, job_id: str, waiter: Waiter, *, keep: bool) -> JobRecord:
    """Wait until the job ends. If the client disconnects or time runs out first, cancel the job.

    With `keep` the job continues: its client has a key to retry with.

    Raises:
        DeadlineExceeded: the job has not ended after FLUID_REQUEST_TIMEOUT_S.
        JobCanceled: the client disconnected.
    """
    limit_s = services.settings.request_timeout_s
    disconnected = asyncio.create_task(_abandon_on_disconnect(request, waiter))
    try:
        if (record := await waiter.end(limit_s)) is not None:
            return record
    except TimeoutError as error:
        if keep:
            outcome = f"job {job_id} continues; repeat the request with its Idempotency-Key"
        else:
            await services.queue.cancel(job_id)
            outcome = "the job was canceled. POST /v1/jobs does not wait"
        raise DeadlineExceeded(
            f"Not ready after {limit_s:g} s (FLUID_REQUEST_TIMEOUT_S); {outcome}.",
            extra={"x-should-retry": "true"} if keep else None,
        ) from error
    except asyncio.CancelledError:  # the gateway is shutting down
        if not keep:
            await asyncio.shield(services.queue.cancel(job_id))
        raise
    finally:
        disconnected.cancel()
    if not keep:
        await services.queue.cancel(job_id)
    raise JobCanceled(f"The client of job {job_id} disconnected.")  # for the metrics: no client receives it


async def _abandon_on_disconnect(request: Request, waiter: Waiter) -> None:
    """Abandon the wait when the client disconnects. The body has been read, so no other message can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    waiter.abandon()


def check_stream_params(body: ImageRequest, *, wants_file: bool) -> None:
    """Check the combination of `stream`, `partial_images` and Accept.

    Raises:
        InvalidRequest: they contradict each other.
    """
    if wants_file and body.stream:
        raise InvalidRequest("'stream' contradicts Accept: image/*; accept text/event-stream.", param="stream")
    if body.partial_images and not body.stream:
        raise InvalidRequest("'partial_images' needs \"stream\": true.", param="partial_images")


async def _file_response(services: Services, record: JobRecord, headers: dict[str, str]) -> Response:
    output = record.outputs[0]
    data = await services.queue.result(record, output)
    if data is None:
        raise image_expired(record)
    headers |= {"seed": str(output.seed), "finish-reason": "SUCCESS"}
    return Response(data, media_type=MIME[output.format], headers=headers)
