"""The door: accept a job, once however often it is asked for, or say when to come back."""

import logging
import math
import re
from dataclasses import replace
from typing import Annotated

from fastapi import Header, Request

from server.errors import InvalidRequest, QueueFull, RequestError
from server.gateway.api_keys import Caller
from server.gateway.dependencies import Services
from server.jobs import JobInput, new_job_id
from server.queue import source_images
from server.queue.job_queue import Accepted

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


async def accept(
    services: Services,
    job: JobInput,
    kind: str,
    caller: Caller,
    *,
    job_id: str | None = None,
    key: str = "",
    asked: str = "",
    followed: bool = False,
    source: bytes | None = None,
) -> Accepted:
    """Queue the job, or find the one that the same request brought before (see Queue.enqueue).

    `source`: the picture that it starts from, kept beside it.
    """
    job_id, job = job_id or new_job_id(), replace(job, owner=caller.name)
    if source is not None:
        await source_images.keep(services.queue, job_id, source)
    try:
        accepted = await services.queue.enqueue(
            job_id, job, kind, key=key, asked=asked, followed=followed, max_jobs=caller.max_jobs
        )
    except RequestError as error:
        if source is not None:
            await source_images.drop(services.queue, job_id)
        if not isinstance(error, QueueFull):
            raise
        line_s = await services.fleet.eta_s(job.model, await services.queue.backlog(job.model))
        retry_s = LONGEST_RETRY_S if line_s is None else math.ceil(line_s * SHARE_TO_WAIT_FOR)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), LONGEST_RETRY_S)) from error
    if services.settings.log_prompts == "yes" and accepted.is_new:
        log.info("%s of %s asks for %r", job_id, caller.name or "nobody", job.prompt)
    if source is not None and accepted.job_id != job_id:
        await source_images.drop(services.queue, job_id)
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
