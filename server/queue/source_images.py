"""Source images of edits: kept until their job ends, in Redis beside it or in the store of FLUID_RESULTS."""

from typing import cast

from server.errors import StorageUnavailable
from server.jobs import JobInput
from server.queue.redis_client import read_hash
from server.queue.scripts import QueueConnection
from server.storage.object_names import upload_name

#: Time to live until the job is accepted. Accepting it makes the image stay; ending the job deletes it (see lua/).
UNCLAIMED_S = 60


async def store(queue: QueueConnection, job_id: str, data: bytes) -> str:
    """Store the image of a job that is about to be accepted; that of an accepted job stays as it is.

    Returns the name of its object, "" if it is in Redis.

    Raises:
        StorageUnavailable: the store of FLUID_RESULTS does not have it.
    """
    if queue.store is None:
        await queue.run("store_source", {"id": job_id, "ttl_s": UNCLAIMED_S}, data)
        return ""
    name = upload_name(queue.store.namespace, job_id)
    # Its deletion first: a gateway that dies now leaves nothing behind.
    await queue.run("store_source", {"id": job_id, "ttl_s": UNCLAIMED_S, "object": name})
    await queue.store.put(name, data)
    return name


async def delete(queue: QueueConnection, job_id: str, name: str = "") -> None:
    """Delete the image of a job that was not accepted; `name` is that of its object."""
    if name:  # unless a job has it
        await queue.redis.zadd(queue.keys.discarded_zset, {name: 0}, xx=True)
    else:
        await queue.redis.delete(queue.keys.input_bytes(job_id))


async def load(queue: QueueConnection, job: JobInput) -> bytes | None:
    """The bytes that `compositing.pack` made; None if the job has no source image or it is gone.

    Raises:
        StorageUnavailable: it lies in the store of FLUID_RESULTS, which does not respond or is not this process's.
    """
    if job.edit is None:
        return None
    record, key = queue.keys.job_hash(job.edit.source), queue.keys.input_bytes(job.edit.source)
    name = await queue.redis.hget(record, "source_object")
    if name is None:
        if data := await queue.redis.execute_command("GET", key, NEVER_DECODE=True):
            return cast("bytes", data)
        # Neither: the job would fail, so the primary has to say so.
        name = (await read_hash(queue.redis, record, f"Job {job.edit.source[:100]!r}")).get("source_object")
    if name is None:
        return cast("bytes | None", await queue.redis.confirm("GET", key, decode=False))
    if queue.store is None:
        raise StorageUnavailable("is not known to this process, whose FLUID_RESULTS is redis")
    return await queue.store.get(name)
