"""/v1/jobs: submit without waiting, then poll, list, follow, download or cancel."""

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from server.errors import InvalidRequest, UnknownImage
from server.gateway import pagination
from server.gateway.admission import IdempotencyKey, accept, idempotency_key, submission_of
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services, ServicesDep
from server.gateway.middleware.auth import CallerDep, ReaderDep
from server.gateway.requests.body import JsonRoute
from server.gateway.requests.query_params import reject_unknown_query_params
from server.gateway.requests.resolve import resolve
from server.gateway.responses.images import image_expired
from server.gateway.responses.jobs import job_object
from server.gateway.schemas.jobs import JobList, JobObject
from server.gateway.schemas.openapi import JOB, JOB_IMAGE, LISTING, SUBMIT, RequestBody
from server.images.codec import MIME
from server.jobs import JobState
from server.queue.job_queue import Accepted, Outcome

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)
CALLER_CHOSEN_ID = "^[A-Za-z0-9_-]{8,64}$"
#: First parts of the ids that the service gives: lines of batches, other jobs, replays of dead letters.
RESERVED_PREFIXES = ("batch_", "job_", "replay_")
_WAIT = re.compile(r"(?:^|[,\s])wait(?:\s*=\s*\"?([^\",;\s]*)\"?)?(?:$|[,;\s])")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
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
    models = await fleet.models()
    job, warnings = resolve(body, models, await fleet.default_model(), services.mapping)
    if job.webhook:
        services.webhooks.check(job.webhook)
    if body.response_format:
        warnings.append("'response_format' has no effect on a job: download its images from the url of each output.")
    submission = submission_of(
        caller,
        job,
        "job",
        body.fingerprint(),
        job_id=job_id,
        key="" if job_id else idempotency_key(request),  # the id itself makes it idempotent
        follow_events=job.partial_images > 0,  # keep early previews for a caller that follows later
    )
    if job_id is None:  # else the job of this id is wanted
        submission = services.result_cache.mark(submission, request, models, seeded=body.seed is not None)
    accepted = await accept(services, submission, named=job_id is not None)
    response = await _job_response(request, services, caller, accepted.job_id, warnings, accepted)
    response.headers.update(services.result_cache.headers(submission, accepted))
    return response


async def _job_response(
    request: Request,
    services: Services,
    caller: Caller,
    job_id: str,
    warnings: list[str] | None = None,
    accepted: Accepted | None = None,
) -> Response:
    """Respond with the job after the preferred wait: 202 while it waits or runs, 200 once it has ended.

    A new job is a 202 without a preferred wait, even if it ends before its record is read: the status of a submission
    must not depend on a race.
    """
    record = accepted.record if accepted else None
    record = record or await services.queue.get(job_id, caller.name)
    is_new = accepted is not None and accepted.outcome is Outcome.NEW
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


@router.post("/{job_id}/cancel", status_code=202, response_model=JobObject, responses=JOB, operation_id="cancel_job")
async def cancel_job(job_id: str, services: ServicesDep, caller: CallerDep) -> Response:
    """Cancel a job. Safe to repeat: 202 while its worker is still stopping, 200 once the job has ended."""
    await services.queue.get(job_id, caller.name)
    record = await services.queue.cancel(job_id)
    view = await job_object(services, record)
    return JSONResponse(view.model_dump(), status_code=200 if record.state.terminal else 202)
