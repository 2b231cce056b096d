"""/v1/jobs: submit without waiting, then poll, list, follow, download or cancel."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError

from server.errors import InvalidRequest, QueueUnavailable, RequestError, UnknownImage
from server.gateway import pagination
from server.gateway.admission import IdempotencyKey, accept, idempotency_key, submission_of
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep, ReaderDep
from server.gateway.queue_trouble import reason
from server.gateway.requests.body import JsonRoute
from server.gateway.requests.query_params import reject_unknown_query_params
from server.gateway.requests.resolve import resolve
from server.gateway.responses import sse
from server.gateway.responses.images import image_expired
from server.gateway.responses.jobs import job_object, preview_url
from server.gateway.schemas.jobs import JobList, JobObject
from server.gateway.schemas.openapi import EVENTS, JOB, JOB_IMAGE, LISTING, PREVIEW, SUBMIT, RequestBody
from server.images.codec import MIME
from server.jobs import JobRecord, JobState
from server.queue.events import BEGINNING, Event

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)
CALLER_CHOSEN_ID = "^[A-Za-z0-9_-]{8,64}$"
#: First parts of the ids that the service gives: lines of batches, other jobs, replays of dead letters.
RESERVED_PREFIXES = ("batch_", "job_", "replay_")
_WAIT = re.compile(r"(?:^|[,\s])wait(?:\s*=\s*\"?([^\",;\s]*)\"?)?(?:$|[,;\s])")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_EVENT_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
MAX_EVENT_ID_PART = 2**64 - 2  # Redis reads from the id after this one, so there must be one
Prefer = Annotated[
    str | None, Header(description="`wait=10` delays the response until the job ends, for at most 10 s.")
]


@router.post("", status_code=202, response_model=JobObject, responses=SUBMIT, operation_id="submit_job")
async def submit_job(
    body: RequestBody,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    prefer: Prefer = None,
    key: IdempotencyKey = None,
) -> Response:
    """Queue a request and return its job at once.

    The job survives disconnects, and restarts of the gateway, the workers and Redis. Repeating the request with the
    same `Idempotency-Key` returns the same job.
    """
    return await _submit(body, request, services, caller, None)


@router.put("/{job_id}", status_code=202, response_model=JobObject, responses=SUBMIT, operation_id="put_job")
async def put_job(
    job_id: Annotated[str, Path(pattern=CALLER_CHOSEN_ID, description="An id of your choice, for example a UUID.")],
    body: RequestBody,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    prefer: Prefer = None,
) -> Response:
    """Queue a request under an id of your choice. Safe to repeat: the same id and body return the same job."""
    if job_id.startswith(RESERVED_PREFIXES):
        raise InvalidRequest(
            f"'job_id' must not begin with {', '.join(RESERVED_PREFIXES)}: the service gives such ids itself.",
            param="job_id",
        )
    return await _submit(body, request, services, caller, job_id)


async def _submit(
    body: RequestBody, request: Request, services: Services, caller: Caller, job_id: str | None
) -> Response:
    if body.stream:
        raise InvalidRequest(
            "'stream' is for the image routes; follow a job at GET /v1/jobs/{id}/events.", param="stream"
        )
    _prefer_wait_s(request)  # reject a malformed header before the job is accepted
    fleet = services.fleet
    job, warnings = resolve(body, await fleet.models(), await fleet.default_model(), services.mapping)
    if job.webhook:
        services.webhooks.check(job.webhook)
    submission = submission_of(
        caller,
        job,
        "job",
        body.fingerprint(),
        job_id=job_id,
        key="" if job_id else idempotency_key(request),  # the id itself makes it idempotent
        follow_events=job.partial_images > 0,  # keep early previews for a caller that follows later
    )
    accepted = await accept(services, submission, named=job_id is not None)
    return await _job_response(request, services, caller, accepted.job_id, warnings, is_new=accepted.is_new)


async def _job_response(
    request: Request,
    services: Services,
    caller: Caller,
    job_id: str,
    warnings: list[str] | None = None,
    *,
    is_new: bool = False,
) -> Response:
    """Respond with the job after the preferred wait: 202 while it waits or runs, 200 once it has ended.

    A new job is a 202 without a preferred wait, even if it ends before its record is read: the status of a submission
    must not depend on a race.
    """
    record = await services.queue.get(job_id, caller.name)
    wait_s = min(_prefer_wait_s(request), services.settings.request_timeout_s)
    if wait_s and not record.state.terminal:
        with services.watcher.expect(job_id) as waiter:
            waiter.event.set()  # check at once: the job may have ended already
            try:
                record = await waiter.end(wait_s) or record
            except TimeoutError:
                record = await services.queue.get(job_id)
    view = await job_object(services, record, warnings)
    status = 200 if record.state.terminal and (wait_s or not is_new) else 202
    return JSONResponse(view.model_dump(), status_code=status, headers={"Location": f"/v1/jobs/{job_id}"})


def _prefer_wait_s(request: Request) -> float:
    """Parse `Prefer: wait=10` (RFC 7240); without a number, wait as long as the service allows.

    Raises:
        InvalidRequest: the number is malformed.
    """
    found = _WAIT.search(request.headers.get("prefer", ""))
    if found is None:
        return 0.0
    if found[1] is None:
        return float("inf")
    if not _SECONDS.fullmatch(found[1]):
        raise InvalidRequest(
            f"'Prefer: wait' must be a number of seconds, such as wait=2.5; got {found[1][:80]!a}.", param="Prefer"
        )
    return float(found[1])


@router.get(
    "",
    response_model=JobList,
    responses=LISTING,
    operation_id="list_jobs",
    dependencies=[Depends(reject_unknown_query_params)],
)
async def list_jobs(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Page size.")] = 20,
    after: Annotated[str | None, Query(description="`last_id` of the previous page.", max_length=200)] = None,
    status: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
) -> JobList:
    """List your jobs, newest first. A page may hold fewer than `limit` jobs, because some expire: go by `has_more`."""
    found = await pagination.page(services.queue, caller.name, limit=limit, after=after, status=status)
    views = await asyncio.gather(*(job_object(services, record) for record in found.records))
    return JobList(data=list(views), last_id=found.last_id, has_more=found.has_more)


@router.get("/{job_id}", response_model=JobObject, responses=JOB, operation_id="get_job")
async def get_job(
    job_id: str, request: Request, services: ServicesDep, caller: CallerDep, prefer: Prefer = None
) -> Response:
    """Get a job: 202 while it waits or runs, 200 once it has ended."""
    return await _job_response(request, services, caller, job_id)


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
    "/{job_id}/images/{index}",
    response_class=Response,
    responses=JOB_IMAGE,
    operation_id="get_job_image",
)
async def get_job_image(
    job_id: str,
    index: int,
    services: ServicesDep,
    reader: ReaderDep,
    expires: Annotated[str | None, Query(description="Of a signed link: Unix time at which it expires.")] = None,
    signature: Annotated[str | None, Query(description="Of a signed link, which needs no API key.")] = None,
) -> Response:
    """Download one image of a job that succeeded."""
    record = await services.queue.get(job_id, reader)
    if record.state is not JobState.SUCCEEDED:
        # A retry makes sense only while the job can still succeed.
        retry = None if record.state.terminal else 1
        raise UnknownImage(
            f"Job {job_id} is {record.state}; it has no images{' yet' if retry else ''}.",
            param="index",
            retry_after_s=retry,
        )
    if not 0 <= index < len(record.outputs):
        raise UnknownImage(f"Job {job_id} has images 0 to {len(record.outputs) - 1}, not {index}.", param="index")
    output = record.outputs[index]
    data = await services.queue.result(record, output)
    if data is None:
        raise image_expired(record)
    headers = {"seed": str(output.seed), "ETag": f'"{output.sha256}"', "Cache-Control": "private, immutable"}
    return Response(data, media_type=MIME[output.format], headers=headers)


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


@router.post("/{job_id}/cancel", status_code=202, response_model=JobObject, responses=JOB, operation_id="cancel_job")
async def cancel_job(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Cancel a job. Safe to repeat: 202 while its worker is still stopping, 200 once the job has ended."""
    await services.queue.get(job_id, caller.name)
    record = await services.queue.cancel(job_id)
    view = await job_object(services, record)
    return JSONResponse(view.model_dump(), status_code=200 if record.state.terminal else 202)
