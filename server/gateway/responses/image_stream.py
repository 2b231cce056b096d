"""`"stream": true`: previews and images as the server-sent events that OpenAI's clients expect."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from server.errors import DeadlineExceeded, QueueUnavailable, RequestError
from server.gateway.dependencies import Services
from server.gateway.queue_trouble import reason
from server.gateway.responses import sse
from server.gateway.responses.images import image_payload, require_success, usage
from server.jobs import JobRecord, JobState

log = logging.getLogger(__name__)
#: What ends a stream of images; `request_error` has the error to report.
FAILURES = (RequestError, RedisError, TimeoutError)


async def image_events(
    services: Services,
    job_id: str,
    response_format: str,
    *,
    keep: bool,
    cached: bool,
    event_prefix: str,
    base_url: str,
    warnings: list[str],
) -> AsyncIterator[bytes]:
    """Yield previews as they arrive, then one `completed` event per image.

    Args:
        cached: the job is that of an earlier request, whose previews are not sent again.
        keep: let the job continue when the client disconnects; otherwise it is canceled.
        event_prefix: first part of the event names, which differs between OpenAI's routes.
        base_url: start of the links to images.
    """
    try:
        async with aclosing(follow_images(services, job_id, keep=keep, cached=cached)) as followed:
            async for news in followed:
                if news is None:
                    yield sse.PING
                elif isinstance(news, Preview):
                    yield _preview_event(news, event_prefix)
                elif isinstance(news, JobRecord):
                    async for text in _completed(services, news, response_format, event_prefix, base_url, warnings):
                        yield text
    except FAILURES as error:
        yield _error_event(request_error(services, job_id, error))


@dataclass(frozen=True, slots=True)
class Preview:
    """An unfinished image of a job."""

    record: JobRecord  #: as it was when the stream began
    index: int  #: of the image
    number: int
    data: bytes
    event_id: str


async def follow_images(
    services: Services, job_id: str, *, keep: bool, cached: bool
) -> AsyncGenerator[Preview | JobState | JobRecord | None, None]:
    """Yield states and previews as they arrive, None after silence, and last the job that succeeded.

    Args: as `image_events`.

    Raises:
        FAILURES: the job ended without success, or cannot be followed; see `request_error`.
    """
    ended = False
    try:
        if not cached:
            async with aclosing(_previews(services, job_id)) as previews:
                async for news in previews:
                    yield news
        ended = True
        record = await services.queue.get(job_id)
        require_success(record)
        yield record
    finally:
        if not (ended or keep):
            await asyncio.shield(services.queue.cancel(job_id))


def request_error(services: Services, job_id: str, error: RequestError | TimeoutError | RedisError) -> RequestError:
    """The error to report for one of FAILURES."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, TimeoutError):
        limit_s = services.settings.request_timeout_s
        return DeadlineExceeded(f"Not ready after {limit_s:g} s (FLUID_REQUEST_TIMEOUT_S).")
    log.error("Redis failed while images of %s were being sent: %s", job_id, error)
    return QueueUnavailable(reason(services.settings, error))


async def _previews(services: Services, job_id: str) -> AsyncGenerator[Preview | JobState | None, None]:
    """Yield states and previews until the job ends. A new attempt produces its previews again; each is sent once."""
    record = await services.queue.get(job_id)
    sent: set[tuple[int, int]] = set()
    limit_s = services.settings.request_timeout_s
    async with aclosing(services.events.follow(job_id, limit_s=limit_s)) as events:
        async for event in events:
            if event is None:
                yield None
            elif event.type == "status":
                yield JobState(event.value)
            elif event.type == "partial_image" and event.preview not in sent:
                sent.add(event.preview)
                index, number = event.preview
                data = await services.events.preview(job_id, index, number)
                if data is not None:
                    yield Preview(record, index, number, data, event.id)


def _preview_event(preview: Preview, event_prefix: str) -> bytes:
    body = _image_fields(preview.record, preview.index) | {
        "type": f"{event_prefix}.partial_image",
        "partial_image_index": preview.number,
        "b64_json": base64.b64encode(preview.data).decode(),
    }
    return sse.message(body, event=f"{event_prefix}.partial_image", id=preview.event_id)


async def _completed(
    services: Services, record: JobRecord, response_format: str, event_prefix: str, base_url: str, warnings: list[str]
) -> AsyncIterator[bytes]:
    total = (await usage(services, record)).model_dump()
    for output in record.outputs:
        body = _image_fields(record, output.index) | {
            "type": f"{event_prefix}.completed",
            "usage": total,
            "warnings": warnings,
        }
        body |= await image_payload(services, record, output, response_format, base_url)
        yield sse.message(body, event=f"{event_prefix}.completed", id=f"{record.id}:{output.index}")


def _image_fields(record: JobRecord, index: int) -> dict[str, Any]:
    """The fields that previews and completed images have in common."""
    job = record.input
    return {
        "created_at": int(time.time()),
        "size": f"{job.width}x{job.height}",
        "quality": job.quality,
        "background": job.background,
        "output_format": job.output_format,
        "image_index": index,
        "seed": job.seed_of(index),
        "job_id": record.id,
    }


def _error_event(error: RequestError) -> bytes:
    """Encode an error event. The status code is already sent, so OpenAI's clients look for `error` in the data."""
    return sse.message(error.body(), event="error")
