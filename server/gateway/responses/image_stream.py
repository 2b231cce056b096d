"""`"stream": true`: previews and images as the server-sent events that OpenAI's clients expect."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from redis.exceptions import RedisError

from server.errors import DeadlineExceeded, QueueUnavailable, RequestError
from server.gateway.dependencies import Services
from server.gateway.queue_trouble import reason
from server.gateway.responses import sse
from server.gateway.responses.images import image_payload, require_success, usage
from server.jobs import JobRecord

log = logging.getLogger(__name__)


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
    ended = False
    try:
        if not cached:
            async with aclosing(_previews(services, job_id, event_prefix)) as previews:
                async for text in previews:
                    yield text
        ended = True
        record = await services.queue.get(job_id)
        require_success(record)
        async for text in _completed(services, record, response_format, event_prefix, base_url, warnings):
            yield text
    except TimeoutError:
        limit_s = services.settings.request_timeout_s
        yield _error_event(DeadlineExceeded(f"Not ready after {limit_s:g} s (FLUID_REQUEST_TIMEOUT_S)."))
    except RequestError as error:
        yield _error_event(error)
    except RedisError as error:
        log.error("Redis failed while images of %s were being sent: %s", job_id, error)
        yield _error_event(QueueUnavailable(reason(services.settings, error)))
    finally:
        if not (ended or keep):
            await asyncio.shield(services.queue.cancel(job_id))


async def _previews(services: Services, job_id: str, event_prefix: str) -> AsyncGenerator[bytes, None]:
    """Yield previews until the job ends. A new attempt produces its previews again; each is sent only once."""
    record = await services.queue.get(job_id)
    sent: set[tuple[int, int]] = set()
    limit_s = services.settings.request_timeout_s
    async with aclosing(services.events.follow(job_id, limit_s=limit_s)) as events:
        async for event in events:
            if event is None:
                yield sse.PING
            elif event.type == "partial_image" and event.preview not in sent:
                sent.add(event.preview)
                index, number = event.preview
                data = await services.events.preview(job_id, index, number)
                if data is not None:
                    body = _image_fields(record, index) | {
                        "type": f"{event_prefix}.partial_image",
                        "partial_image_index": number,
                        "b64_json": base64.b64encode(data).decode(),
                    }
                    yield sse.message(body, event=f"{event_prefix}.partial_image", id=event.id)


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
        "background": "opaque",
        "output_format": job.output_format,
        "image_index": index,
        "seed": job.seed_of(index),
        "job_id": record.id,
    }


def _error_event(error: RequestError) -> bytes:
    """Encode an error event. The status code is already sent, so OpenAI's clients look for `error` in the data."""
    return sse.message(error.body(), event="error")
