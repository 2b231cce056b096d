"""`stream: true`: a job's events in the form that OpenAI's clients read from the image route."""

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
from server.gateway.responses import sse
from server.gateway.responses.images import image_payload, require_success, usage
from server.jobs import JobRecord

log = logging.getLogger(__name__)


async def pictures(
    services: Services,
    job_id: str,
    response_format: str,
    *,
    keep: bool,
    kind: str,
    home: str,
    warnings: list[str],
) -> AsyncIterator[bytes]:
    """Previews as they come, then one `completed` per picture. Who hangs up cancels the job, unless `keep`.

    `kind`: the first part of the events' names, by which OpenAI's routes differ. `home`: what links begin with.
    """
    ended = False
    try:
        async with aclosing(_previews(services, job_id, kind)) as previews:
            async for text in previews:
                yield text
        ended = True
        record = await services.queue.get(job_id)
        require_success(record)
        async for text in _completed(services, record, response_format, kind, home, warnings):
            yield text
    except TimeoutError:
        limit_s = services.settings.request_timeout_s
        yield _failed(DeadlineExceeded(f"Not ready after {limit_s:g} s (FLUID_REQUEST_TIMEOUT_S)."))
    except RequestError as error:
        yield _failed(error)
    except RedisError as error:
        log.error("Redis, while pictures of %s were sent: %s", job_id, error)
        yield _failed(QueueUnavailable())
    finally:
        if not (ended or keep):
            await asyncio.shield(services.queue.cancel(job_id))


async def _previews(services: Services, job_id: str, kind: str) -> AsyncGenerator[bytes, None]:
    """Until the job has ended. A try that was taken over shows its previews again; each is sent once."""
    record = await services.queue.get(job_id)
    shown: set[tuple[int, int]] = set()
    limit_s = services.settings.request_timeout_s
    async with aclosing(services.events.follow(job_id, limit_s=limit_s)) as events:
        async for event in events:
            if event is None:
                yield sse.PING
            elif event.type == "partial_image" and event.preview not in shown:
                shown.add(event.preview)
                index, number = event.preview
                data = await services.events.preview(job_id, index, number)
                if data is not None:
                    body = _picture(record, index) | {
                        "type": f"{kind}.partial_image",
                        "partial_image_index": number,
                        "b64_json": base64.b64encode(data).decode(),
                    }
                    yield sse.message(body, event=f"{kind}.partial_image", id=event.id)


async def _completed(
    services: Services, record: JobRecord, response_format: str, kind: str, home: str, warnings: list[str]
) -> AsyncIterator[bytes]:
    total = (await usage(services, record)).model_dump()
    for output in record.outputs:
        body = _picture(record, output.index) | {"type": f"{kind}.completed", "usage": total, "warnings": warnings}
        body |= await image_payload(services, record, output, response_format, home)
        yield sse.message(body, event=f"{kind}.completed", id=f"{record.id}:{output.index}")


def _picture(record: JobRecord, index: int) -> dict[str, Any]:
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


def _failed(error: RequestError) -> bytes:
    """The status was sent long ago: OpenAI's clients raise on an event whose data has an `error`."""
    return sse.message(error.body(), event="error")
