"""The gateway's side of the queue: accept a job, read it, cancel it, load its images.

Promise: every accepted job reaches exactly one terminal state and at most one result is ever visible for it;
execution is at-least-once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from server.errors import JobExpired, KeyReused, QueueFull, RateLimited, RequestError, UnknownJob
from server.jobs import JobInput, JobRecord, JobState, Output
from server.queue import source_images
from server.queue.redis_client import Client
from server.queue.scripts import QueueConnection
from server.queue.statistics import QueuePosition
from server.settings import Settings

RETRY_WHEN_FULL_S = 5  # the gateway replaces it with an estimate where it has one


@dataclass(frozen=True, slots=True)
class Submission:
    """A job on its way into the queue.

    The same id, or the same Idempotency-Key of the same owner, with the same fingerprint is the same job.
    """

    job_id: str
    job: JobInput
    kind: str  #: how it was submitted: sync, job or batch
    key: str = ""  #: Idempotency-Key, if any
    fingerprint: str = ""  #: hash of the request as the caller sent it
    follow_events: bool = False  #: keep its events from the start
    max_jobs: int = 0  #: how many jobs of its owner may wait or run; 0: any number
    source: bytes | None = None  #: the packed source image of an edit


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job that a submission became."""

    job_id: str
    created_at: float
    is_new: bool  #: False if the same request was accepted before


class JobQueue(QueueConnection):
    """The queue operations of a gateway."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.max_queue = settings.max_queue

    async def enqueue(self, submission: Submission) -> Accepted:
        """Accept a job, which from then on reaches exactly one terminal state. Safe to repeat.

        The source image is stored first, because no worker may find the job without it, and deleted again if the job
        was not accepted, or had been accepted before.

        Raises:
            QueueFull, RateLimited: too many jobs wait. KeyReused: the id or key is that of another request.
            JobExpired: the job of this id ended and was deleted.
        """
        if submission.source is None:
            return await self._enqueue(submission)
        await source_images.store(self, submission.job_id, submission.source)
        try:
            accepted = await self._enqueue(submission)
        except RequestError:
            await source_images.delete(self, submission.job_id)
            raise
        if accepted.job_id != submission.job_id:
            await source_images.delete(self, submission.job_id)
        return accepted

    async def _enqueue(self, submission: Submission) -> Accepted:
        job, max_jobs = submission.job, submission.max_jobs
        args = {
            "id": submission.job_id,
            "input": job.to_json(),
            "kind": submission.kind,
            "model": job.model,
            "class": job.priority,
            "caller": job.caller,
            "owner": job.owner,
            "work": job.work,
            "deadline_ms": job.deadline_ms,
            "result_ttl_s": job.result_ttl_s,
            "webhook": job.webhook or None,
            "batch": job.batch or None,
            "key": submission.key or None,
            "fingerprint": submission.fingerprint,
            "follow_events": submission.follow_events,
            "max_queue": self.max_queue,
            "max_jobs": max_jobs,
        }
        answer, value, created_at = await self.run("enqueue", args)
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
            name = f"Idempotency-Key {submission.key!r}" if submission.key else f"job id {submission.job_id!r}"
            raise KeyReused(f"The {name} belongs to another request. Use a new one for a new request.")
        return Accepted(value, float(created_at), answer == "new")

    async def get(self, job_id: str, owner: str | None = None) -> JobRecord:
        """Read a job's record. With an `owner`, jobs of other owners are unknown.

        Raises:
            UnknownJob: no such job. JobExpired: it ended and was deleted. UnreadableRecord: see JobRecord.
        """
        raw = await self.redis.hgetall(self.keys.job_hash(job_id))
        if raw and owner in (None, raw.get("owner", "")):
            return JobRecord.from_fields(raw)
        ended = None if raw else await self.redis.get(self.keys.tombstone(job_id))
        if ended:
            state, _, ended_of = ended.partition(" ")
            if owner in (None, ended_of):
                raise JobExpired(f"Job {job_id} {state}; its record and images have been deleted.")
        raise UnknownJob(f"No job has the id {job_id!r}. Ids come from POST /v1/jobs.", param="job_id")

    async def ended(self, job_ids: Sequence[str]) -> list[str]:
        """The jobs that have ended, found with two commands however many there are; all, if any of them is unknown."""
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
        """Queue position of a waiting job; None once a worker has it."""
        if record.state is not JobState.QUEUED:
            return None
        ahead, mean_work = await self.run("place", {"id": record.id})
        return QueuePosition(ahead, ahead * float(mean_work)) if ahead >= 0 else None

    async def cancel(self, job_id: str) -> JobRecord:
        """End a waiting job, or flag a running one, which ends within one step. Safe to repeat."""
        await self.run("cancel", {"id": job_id, "ttl_s": self.ttl_s})
        return await self.get(job_id)

    async def result(self, record: JobRecord, output: Output) -> bytes | None:
        """Load an image file; None if it expired. Its key names the attempt that generated it."""
        key = self.keys.result_bytes(record.id, output.token, output.index)
        # The client decodes replies as text; images need the raw bytes.
        raw = await self.redis.execute_command("GET", key, NEVER_DECODE=True)
        return cast("bytes | None", raw)

    async def backlog(self, model: str) -> int:
        """Waiting work of a model, in row-steps."""
        return int(await self.redis.hget(self.keys.counters_hash, f"work:{model}") or 0)

    async def sweep(self) -> None:
        """Abort waiting jobs past their deadline and forget expired ones. Any number of processes may call it."""
        await self.run("sweep", {"ttl_s": self.ttl_s})
