"""/v1/jobs/{id}: the events of a job, and the previews that they announce."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import Response
from redis.exceptions import RedisError

from server.errors import InvalidRequest, QueueUnavailable, RequestError, UnknownImage
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep
from server.gateway.queue_trouble import reason
from server.gateway.responses import sse
from server.gateway.responses.jobs import job_object, preview_url
from server.gateway.schemas.openapi import EVENTS, PREVIEW
from server.images.codec import MIME
from server.jobs import JobRecord
from server.queue.events import BEGINNING, Event

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
_EVENT_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
MAX_EVENT_ID_PART = 2**64 - 2  # Redis reads from the id after this one, so there must be one


@router.get("/{job_id}/events", response_class=Response, responses=EVENTS, operation_id="follow_job")
async def follow_job(
    job_id: str,
    services: ServicesDep,
    caller: CallerDep,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Response:
    """Follow a job with server-sent events until it ends; the last event holds the whole job object."""
    if last_event_id is not None and not _is_event_id(last_event_id):
        raise InvalidRequest(
            f"'Last-Event-ID' must be the id of an event, such as 1700000000000-0; got {last_event_id[:80]!r}.",
            param="Last-Event-ID",
        )
    slot = services.streams.open(caller.name)
    try:
        record = await services.events.begin(job_id, caller.name)
    except BaseException:
        slot.close()
        raise
    return sse.response(_events(services, record, last_event_id or BEGINNING), slot)


def _is_event_id(text: str) -> bool:
    found = _EVENT_ID.fullmatch(text)
    return found is not None and all(int(half) <= MAX_EVENT_ID_PART for half in found.groups())


async def _events(services: Services, record: JobRecord, after: str) -> AsyncIterator[bytes]:
    try:
        async with aclosing(services.events.follow(record.id, after)) as found:
            async for event in found:
                yield sse.PING if event is None else await _event(services, record, event)
    except RequestError as error:  # the job expired in the meantime
        yield sse.message(error.body(), event="error")
    except RedisError as error:
        log.error("Redis failed while events of %s were being sent: %s", record.id, error)
        yield sse.message(QueueUnavailable(reason(services.settings, error)).body(), event="error")


async def _event(services: Services, record: JobRecord, event: Event) -> bytes:
    if event.ends:
        view = await job_object(services, await services.queue.get(record.id))
        return sse.message(view.model_dump(), event=event.value, id=event.id)
    if event.type == "partial_image":
        index, number = event.preview
        data = {"image_index": index, "partial_image_index": number, "url": preview_url(record.id, index, number)}
        return sse.message(data, event="partial_image", id=event.id)
    if event.type == "progress":
        step, steps = int(event.value), record.input.work
        data = {"step": step, "steps": steps, "fraction": round(step / steps, 4)}
        return sse.message(data, event="progress", id=event.id)
    return sse.message({"status": event.value}, event="status", id=event.id)


@router.get(
    "/{job_id}/images/{index}/previews/{number}",
    response_class=Response,
    responses=PREVIEW,
    operation_id="get_job_preview",
)
async def get_job_preview(job_id: str, index: int, number: int, services: ServicesDep, caller: CallerDep) -> Response:
    """Download a preview of an unfinished image, as announced by a `partial_image` event."""
    record = await services.queue.get(job_id, caller.name)
    data = await services.events.preview(job_id, index, number)
    if data is None:
        raise UnknownImage(f"Job {job_id} has no preview {number} of image {index}.", param="number")
    headers = {"Cache-Control": "private, immutable"}
    return Response(data, media_type=MIME[record.input.output_format], headers=headers)
