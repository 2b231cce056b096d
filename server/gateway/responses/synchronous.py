"""Queue a job, wait for it, and respond in the requested form: JSON, the image file, or events."""

import asyncio

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server import background
from server.errors import DeadlineExceeded, InvalidRequest, JobCanceled
from server.gateway.admission import accept, idempotency_key
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services
from server.gateway.requests import content_negotiation
from server.gateway.responses import image_stream, sse
from server.gateway.responses.headers import timing_headers, warning_headers
from server.gateway.responses.images import image_expired, images_response, require_success
from server.gateway.responses.jobs import public_base_url
from server.gateway.schemas.images import ImageRequest
from server.images.codec import MIME
from server.jobs import JobInput, JobRecord, new_job_id
from server.queue.watcher import Waiter


async def respond(
    request: Request,
    services: Services,
    caller: Caller,
    body: ImageRequest,
    job: JobInput,
    warnings: list[str],
    *,
    asked: str,
    kind: str = "image_generation",
    source: bytes | None = None,
) -> Response:
    """Queue the job and answer as its caller wants it: with events, with the file, or with JSON.

    `kind`: the first part of the events' names. `source`: the picture that it starts from.
    """
    wants_file = content_negotiation.wants_image_bytes(request, job.n)
    _check_stream_params(body, wants_file=wants_file)
    await services.fleet.require_worker(job.model)
    key, form = idempotency_key(request), body.response_format or "b64_json"
    base_url = public_base_url(services, request)
    job_id = job.edit.source if job.edit else new_job_id()
    if body.stream:
        accepted = await accept(
            services, job, "sync", caller, job_id=job_id, key=key, asked=asked, followed=True, source=source
        )
        pictures = image_stream.image_events(
            services, accepted.job_id, form, keep=bool(key), kind=kind, base_url=base_url, warnings=warnings
        )
        return sse.response(pictures, warning_headers(accepted.job_id, warnings))
    record = await _draw(request, services, job, caller, job_id=job_id, key=key, asked=asked, source=source)
    headers = timing_headers(record) | warning_headers(record.id, warnings)
    if wants_file:
        return await _file_response(services, record, headers)
    view = await images_response(services, record, form, warnings, base_url)
    return JSONResponse(view.model_dump(), headers=headers)


async def _draw(
    request: Request,
    services: Services,
    job: JobInput,
    caller: Caller,
    *,
    job_id: str,
    key: str,
    asked: str,
    source: bytes | None,
) -> JobRecord:
    """Queue the job, or find the one that the same request brought before, and wait for its success."""
    with services.watcher.expect(job_id) as expected:
        accepted = await accept(services, job, "sync", caller, job_id=job_id, key=key, asked=asked, source=source)
        if accepted.job_id == job_id:
            record = await _wait(request, services, job_id, expected, keep=bool(key))
    if accepted.job_id != job_id:
        with services.watcher.expect(accepted.job_id) as expected:
            expected.event.set()  # it may have ended before we came
            record = await _wait(request, services, accepted.job_id, expected, keep=True)
    require_success(record)
    return record


async def _wait(request: Request, services: Services, job_id: str, expected: Waiter, *, keep: bool) -> JobRecord:
    """Wait until the job ends. If the client disconnects or time runs out first, cancel the job.

    With `keep` the job continues: its client has a key to retry with.

    Raises:
        DeadlineExceeded: the job has not ended after FLUID_REQUEST_TIMEOUT_S.
        JobCanceled: the client disconnected.
    """
    limit_s = services.settings.request_timeout_s
    ended = asyncio.create_task(expected.end(limit_s))
    disconnected = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((ended, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
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
        await background.end(ended, disconnected)
    if not keep:
        await services.queue.cancel(job_id)
    raise JobCanceled(f"The client of job {job_id} disconnected.")  # for the metrics: no client receives it


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client disconnects. The body has been read, so no other message can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_stream_params(body: ImageRequest, *, wants_file: bool) -> None:
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
