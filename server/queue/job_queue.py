"""The gateway's side of the queue: accept a job, read it, cancel it, fetch its images.

Promise: every accepted job reaches exactly one terminal state and at most one result is ever visible for it;
execution is at-least-once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from server.errors import JobExpired, KeyReused, QueueFull, RateLimited, UnknownJob
from server.jobs import JobInput, JobRecord, JobState, Output
from server.queue.redis_client import Client
from server.queue.scripts import QueueConnection
from server.queue.statistics import QueuePosition
from server.settings import Settings

RETRY_WHEN_FULL_S = 5  # the gateway replaces it by an estimate where it has one


@dataclass(frozen=True, slots=True)
class Accepted:
    job_id: str
    created_at: float
    is_new: bool  #: False: this very request was accepted before


class JobQueue(QueueConnection):
    """What a gateway does with jobs."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.max_queue = settings.max_queue

    async def enqueue(
        self,
        job_id: str,
        job: JobInput,
        kind: str,
        *,
        key: str = "",
        asked: str = "",
        followed: bool = False,
        max_jobs: int = 0,
    ) -> Accepted:
        """Accept the job. After this it will reach exactly one terminal state.

        `asked` is a hash of what the caller sent: the same id or Idempotency-Key (`key`) with the same request gives
        the job that there is already. `followed`: keep its events from the start. `max_jobs`: of its owner at a time.
        """
        optional = ["" if value is None else value for value in (job.deadline_ms, key, asked, job.result_ttl_s)]
        args = [job_id, job.to_json(), kind, self.max_queue, job.model, job.priority, job.caller, job.work]
        about = [int(followed), job.owner, job.webhook, job.batch, max_jobs]
        answer, value, created_at = await self.run("enqueue", [*args, *optional, *about])
        if answer == "full":
            raise QueueFull(
                f"{value} jobs are waiting, the limit is {self.max_queue} (FLUID_MAX_QUEUE). Try later.",
                retry_after_s=RETRY_WHEN_FULL_S,
            )
        if answer == "busy":
            raise RateLimited(
                f"{value} jobs of {job.owner!r} wait or run, the limit is {max_jobs} (FLUID_MAX_JOBS). Try later.",
                retry_after_s=1,
            )
        if answer == "gone":
            raise JobExpired(f"Job {value} has ended and was deleted; choose another id.")
        if answer in ("differs", "taken"):
            name = f"Idempotency-Key {key!r}" if key else f"job id {job_id!r}"
            raise KeyReused(f"The {name} is that of another request. Use a new one for a new request.")
        return Accepted(value, float(created_at), answer == "new")

    async def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """With an `owner`, other people's jobs are unknown."""
        raw = await self.redis.hgetall(self.keys.job_hash(job_id))
        if raw and owner in (None, raw.get("scope", "")):
            return JobRecord.from_fields(raw)
        ended = None if raw else await self.redis.get(self.keys.tombstone(job_id))
        if ended:
            state, _, scope = ended.partition(" ")
            if owner in (None, scope):
                raise JobExpired(f"Job {job_id} {state}; its record and pictures were deleted since.")
        raise UnknownJob(f"No job has the id {job_id!r}. Ids come from POST /v1/jobs.", param="job_id")

    async def ended(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the jobs that are over, by two commands however many they are. All, if any of them is unknown."""
        if not job_ids:
            return []
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.mget([self.keys.tombstone(job_id) for job_id in job_ids])
            pipe.exists(*(self.keys.job_hash(job_id) for job_id in job_ids))
            ends, known = await pipe.execute()
        if known < len(job_ids):
            return list(job_ids)
        return [job_id for job_id, end in zip(job_ids, ends, strict=True) if end]

    async def place(self, record: JobRecord) -> QueuePosition | None:
        """What is ahead of a waiting job; None once a worker has it."""
        if record.state is not JobState.QUEUED:
            return None
        ahead, mean_work = await self.run("place", [record.id])
        return QueuePosition(ahead, ahead * float(mean_work)) if ahead >= 0 else None

    async def cancel(self, job_id: str) -> JobRecord:
        """A waiting job ends here; a running one is flagged and ends within one step. Safe to repeat."""
        await self.run("cancel", [job_id, self.ttl_s])
        return await self.get(job_id)

    async def result(self, record: JobRecord, output: Output) -> bytes | None:
        """The file, under the name of the try that drew it."""
        key = self.keys.result_bytes(record.id, output.token, output.index)
        # The client decodes answers as text; pictures need the raw reply.
        raw = await self.redis.execute_command("GET", key, NEVER_DECODE=True)
        return cast("bytes | None", raw)

    async def backlog(self, model: str) -> int:
        """Row-steps that wait for the model's workers."""
        return int(await self.redis.hget(self.keys.counters_hash, f"work:{model}") or 0)

    async def sweep(self) -> None:
        """End what the clock ends: waiting jobs past their deadline. Any number of processes may call it."""
        await self.run("sweep", [self.ttl_s])
