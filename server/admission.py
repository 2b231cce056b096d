"""The door: accept a job, or say when to come back."""

import math

from server.errors import QueueFull
from server.jobs import JobInput
from server.services import Services

#: Clients of OpenAI's kind do not obey a longer one.
LONGEST_RETRY_S = 120
#: Come back when so much of the line is gone: after one job only one of those who were sent away would find room.
SHARE_TO_WAIT_FOR = 0.1


async def accept(services: Services, job_id: str, job: JobInput, kind: str) -> None:
    """Queue the job."""
    try:
        await services.queue.enqueue(job_id, job, kind)
    except QueueFull as error:
        line_s = await services.fleet.eta_s(job.model, await services.queue.backlog(job.model))
        retry_s = LONGEST_RETRY_S if line_s is None else math.ceil(line_s * SHARE_TO_WAIT_FOR)
        raise QueueFull(error.message, retry_after_s=min(max(1, retry_s), LONGEST_RETRY_S)) from error
