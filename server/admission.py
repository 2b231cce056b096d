"""The door: accept a job, once however often it is asked for, or say when to come back."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated

from fastapi import Header, Request

from server.errors import InvalidRequest, QueueFull
from server.jobs import JobInput, new_job_id
from server.queue import Accepted

if TYPE_CHECKING:  # services build on this module
    from server.services import Services

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
    *,
    job_id: str | None = None,
    key: str = "",
    asked: str = "",
    followed: bool = False,
) -> Accepted:
    """Queue the job, or find the one that the same request brought before (see Queue.enqueue)."""
    try:
        return await services.queue.enqueue(job_id or new_job_id(), job, kind, key=key, asked=asked, followed=followed)
    except QueueFull as error:
        line_s = await services.fleet.eta_s(job.model, await services.queue.backlog(job.model))
        retry_s = LONGEST_RETRY_S if line_s is None else math.ceil(line_s * SHARE_TO_WAIT_FOR)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), LONGEST_RETRY_S)) from error


def idempotency_key(request: Request) -> str:
    """Of the header; "" without one."""
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise InvalidRequest(
            "'Idempotency-Key' must have 1 to 255 visible ASCII characters, for example a UUID.",
            param="Idempotency-Key",
        )
    return key
