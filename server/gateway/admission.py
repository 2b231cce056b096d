"""The door: accept a job, once however often it is asked for, or say when to come back."""

import logging
import math
import re
from dataclasses import replace
from typing import Annotated

from fastapi import Header, Request

from server.errors import InvalidRequest, QueueFull
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services
from server.jobs import JobInput, new_job_id
from server.queue.job_queue import Accepted, Submission

log = logging.getLogger(__name__)
#: Clients of OpenAI's kind do not obey a longer one.
LONGEST_RETRY_S = 120
#: Come back when so much of the line is gone: after one job only one of those who were sent away would find room.
SHARE_TO_WAIT_FOR = 0.1
#: For the contract; what it must look like is checked by `idempotency_key`, which also names the limit.
Key = Annotated[
    str | None, Header(alias="Idempotency-Key", description="The same key and body, within a day, is the same job.")
]
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


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
    """The job as one of this caller, within their limits."""
    job = replace(job, owner=caller.name)
    return Submission(job_id or new_job_id(), job, kind, key, fingerprint, follow_events, caller.max_jobs, source)


async def accept(services: Services, submission: Submission) -> Accepted:
    """Queue the job, or find the one that the same request brought before.

    Raises:
        QueueFull: with an estimate of when to retry. KeyReused, JobExpired, RateLimited: see JobQueue.enqueue.
    """
    job = submission.job
    try:
        accepted = await services.queue.enqueue(submission)
    except QueueFull as error:
        line_s = await services.fleet.eta_s(job.model, await services.queue.backlog(job.model))
        retry_s = LONGEST_RETRY_S if line_s is None else math.ceil(line_s * SHARE_TO_WAIT_FOR)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), LONGEST_RETRY_S)) from error
    if services.settings.log_prompts == "yes" and accepted.is_new:
        log.info("%s of %s asks for %r", submission.job_id, job.owner or "nobody", job.prompt)
    return accepted


def idempotency_key(request: Request) -> str:
    """Of the header; "" without one."""
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise InvalidRequest(
            "'Idempotency-Key' must have 1 to 255 visible ASCII characters, for example a UUID.",
            param="Idempotency-Key",
        )
    return key
