"""Admission control: accept a job once per idempotency key, or reject it with a time to retry after."""

import logging
import math
import re
import time
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

from fastapi import Header, Request
from redis.exceptions import RedisError

from server.errors import InvalidRequest, JobExpired, NotReplicated, NoWorkers, QueueFull, RateLimited, UnknownJob
from server.errors.limits import RETRY_WHEN_USED_UP_S
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services
from server.jobs import PRIORITIES, JobInput, new_job_id
from server.queue.job_queue import Accepted, JobQueue, Outcome, Submission
from server.telemetry.job_trace import request_attributes
from server.telemetry.tracing import current

log = logging.getLogger(__name__)
#: OpenAI's clients ignore a longer Retry-After.
MAX_RETRY_AFTER_S = 120
#: Retry when this share of the queue has drained: after a single job, only one of the rejected callers would get in.
DRAINED_SHARE = 0.1
#: Only documents the header; `idempotency_key` reads and checks it, with an error that names the limit.
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Repeating a request with the same key and body within a day returns the same job.",
    ),
]
_VALID_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def submission_of(
    caller: Caller,
    job: JobInput,
    kind: str,
    fingerprint: str,
    *,
    job_id: str | None = None,
    key: str = "",
    follow_events: bool = False,
    source: bytes | None = None,
) -> Submission:
    """Build the submission of a caller's job, within the limits of their API key.

    Raises:
        InvalidRequest: the job's priority is above what the key grants.
    """
    if PRIORITIES.index(job.priority) < PRIORITIES.index(caller.max_priority):
        raise InvalidRequest(
            f"'priority' {job.priority!r} is not granted to this API key; its highest is {caller.max_priority!r}. The "
            f"operator grants more by max_priority={job.priority} in the key's line.",
            param="priority",
        )
    job = replace(job, owner=caller.name)
    return Submission(job_id or new_job_id(), job, kind, key, fingerprint, follow_events, caller.max_jobs, source)


async def accept(
    services: Services, submission: Submission, *, named: bool = False, needs_worker: bool = False
) -> Accepted:
    """Queue the job, or find the one that the same request created before, or that has its images.

    Args:
        named: the caller chose the job's id.
        needs_worker: a new job is accepted only while a worker is ready for it.

    Raises:
        NoWorkers: with `needs_worker`, none is ready.
        QueueFull: too many jobs wait; Retry-After is an estimate of when the queue has room.
        NotReplicated: too few replicas of Redis have the job (FLUID_REPLICAS); it was canceled, unless the caller can
            repeat the request with its id or Idempotency-Key.
        KeyReused, JobExpired, RateLimited: see JobQueue.enqueue.
    """
    job, span, began = submission.job, current.get(), time.time()
    if needs_worker:
        try:
            await services.fleet.require_worker(job.model)
        except NoWorkers:
            found = await _found_before(services.queue, submission)
            if found is None or (found := await services.queue.with_images(found, submission)) is None:
                raise
            return found
    if span is not None:
        submission = replace(submission, trace=str(span.context))
    try:
        accepted = await services.queue.with_images(await services.queue.enqueue(submission), submission)
        if accepted is None:  # deleted, or in another store than today's: generated as a request of its own
            accepted = await services.queue.enqueue(replace(submission, cache_key=""))
    except QueueFull as error:
        if error.retry_after_s == RETRY_WHEN_USED_UP_S:  # memory, which does not follow from the queue
            raise
        queue_s = await services.fleet.eta_s(job.model, await services.queue.backlog(job.model))
        retry_s = MAX_RETRY_AFTER_S if queue_s is None else math.ceil(queue_s * DRAINED_SHARE)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), MAX_RETRY_AFTER_S)) from error
    except NotReplicated as error:
        if submission.key or named:
            name = "id" if named else "Idempotency-Key"
            outcome = f"Repeat the request with its {name}, which finds its job if there is one."
        else:
            with suppress(RedisError, UnknownJob, JobExpired):
                await services.queue.cancel(submission.job_id)
            outcome = "Its job was canceled; try again."
        raise NotReplicated(f"{error.message} {outcome}", retry_after_s=error.retry_after_s) from error
    if span is not None:
        span.child("enqueue", began, time.time(), {})
        span.set(request_attributes(accepted.job_id, job))
    if services.settings.log_prompts == "yes" and accepted.outcome is Outcome.NEW:
        log.info("%s by %s: prompt %r", submission.job_id, job.owner or "anonymous", job.prompt)
    return accepted


async def _found_before(queue: JobQueue, submission: Submission) -> Accepted | None:
    """The ended job that this request became before, or one with equal images; None if it needs a worker."""
    found = await queue.cached(submission)
    if found is None and submission.key:
        with suppress(QueueFull, RateLimited):  # it would be a new one
            found = await queue.ask(submission)
    if found is None or found.outcome is Outcome.ROOM:
        return None
    return found if (await queue.get(found.job_id)).state.terminal else None


def idempotency_key(request: Request) -> str:
    """Return the Idempotency-Key header, or "" without one.

    Raises:
        InvalidRequest: the key is too long or has invisible characters.
    """
    key = request.headers.get("idempotency-key", "")
    if key and not _VALID_KEY.fullmatch(key):
        raise InvalidRequest(
            "'Idempotency-Key' must have 1 to 255 visible ASCII characters, for example a UUID.",
            param="Idempotency-Key",
        )
    return key
