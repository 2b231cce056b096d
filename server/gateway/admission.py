"""Admission control: accept a job once per idempotency key, or reject it with a time to retry after."""

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
#: OpenAI's clients ignore a longer Retry-After.
MAX_RETRY_AFTER_S = 120
#: Retry when this share of the queue has drained: after a single job, only one of the rejected callers would get in.
DRAINED_SHARE = 0.1
#: Only documents the header; `idempotency_key` reads and checks it, with an error that names the limit.
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Repeating a request with the same key and body within a day returns the same job.",
    ),
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
        retry_s = MAX_RETRY_AFTER_S if line_s is None else math.ceil(line_s * DRAINED_SHARE)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), MAX_RETRY_AFTER_S)) from error
    if services.settings.log_prompts == "yes" and accepted.is_new:
        log.info("%s of %s asks for %r", job_id, caller.name or "nobody", job.prompt)
    if source is not None and accepted.job_id != job_id:
        await source_images.drop(services.queue, job_id)
    return accepted


def idempotency_key(request: Request) -> str:
    """Return the Idempotency-Key header, or "" without one.

    Raises:
        InvalidRequest: the key is too long or has invisible characters.
    """
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise InvalidRequest(
            "'Idempotency-Key' must have 1 to 255 visible ASCII characters, for example a UUID.",
            param="Idempotency-Key",
        )
    return key
