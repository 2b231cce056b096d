"""Source images of edits: kept in Redis beside their job until it ends."""

from typing import cast

from server.jobs import JobInput
from server.queue.scripts import QueueConnection

#: Time to live until the job is accepted. Accepting it makes the image stay; ending the job deletes it (see lua/).
UNCLAIMED_S = 60


async def store(queue: QueueConnection, job_id: str, data: bytes) -> None:
    """Store the image of a job that is about to be accepted; that of an accepted job stays as it is."""
    await queue.run("store_source", {"id": job_id, "ttl_s": UNCLAIMED_S}, data)


async def delete(queue: QueueConnection, job_id: str) -> None:
    """Delete the image of a job that was not accepted."""
    await queue.redis.delete(queue.keys.input_bytes(job_id))


async def load(queue: QueueConnection, job: JobInput) -> bytes | None:
    """The bytes that `compositing.pack` made; None if the job has no source image or it is gone."""
    if job.edit is None:
        return None
    key = queue.keys.input_bytes(job.edit.source)
    return cast("bytes | None", await queue.redis.execute_command("GET", key, NEVER_DECODE=True))
