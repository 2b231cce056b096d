"""Pictures that requests start from, in Redis beside their job until it ends."""

from typing import cast

from server.jobs import JobInput
from server.queue.scripts import QueueConnection

#: Of one whose job is not accepted yet. Accepting it makes the picture stay, ending the job deletes it (see lua/).
UNCLAIMED_S = 60


async def keep(queue: QueueConnection, job_id: str, data: bytes) -> None:
    """Before the job is accepted: no worker may find it without its picture."""
    await queue.redis.set(queue.keys.input_bytes(job_id), data, ex=UNCLAIMED_S)


async def drop(queue: QueueConnection, job_id: str) -> None:
    """The job was not accepted, or had been before."""
    await queue.redis.delete(queue.keys.input_bytes(job_id))


async def fetch(queue: QueueConnection, job: JobInput) -> bytes | None:
    """The bytes of `edits.pack`; None if they are gone."""
    if job.edit is None:
        return None
    key = queue.keys.input_bytes(job.edit.source)
    return cast("bytes | None", await queue.redis.execute_command("GET", key, NEVER_DECODE=True))
