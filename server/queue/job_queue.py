"""The gateway's side of the queue: accept a job, read it, cancel it, load its images.

Promise: every accepted job reaches exactly one terminal state and at most one result is ever visible for it;
execution is at-least-once.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from server.errors import (
    JobCanceled,
    JobExpired,
    KeyReused,
    NotReplicated,
    RequestError,
    StorageUnavailable,
    UnknownJob,
)
from server.errors.limits import MIB, job_refusal, memory_refusal
from server.jobs import JobInput, JobRecord, JobState, Output
from server.queue import source_images
from server.queue.redis_client import Client, read_hash
from server.queue.scripts import SHARED_BYTES, QueueConnection
from server.queue.statistics import QueuePosition
from server.settings import Settings

CACHE_BYTES = 400  # of an entry of the result cache, and its fields in the record
RECORD_BYTES = 1600  # of a waiting job beside its input (measured)
#: Share of Redis' maxmemory that FLUID_MAX_MIB=0 stands for: the rest is for what is not counted.
COUNTED_SHARE = 0.75


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
    trace: str = ""  #: traceparent, if the request is sampled
    cache_key: str = ""  #: hash of a request whose images equal requests may get; "": it takes no part in that
    checkpoint: str = ""  #: hash of the weights whose images are wanted, for `cache_key`
    waiter: str = ""  #: name of the gateway that waits for the end, if one does


class Outcome(StrEnum):
    """The origin of the job that a submission became."""

    NEW = "new"  #: its own
    KNOWN = "known"  #: that of the same request, which was accepted before
    CACHED = "cached"  #: that of an equal request, which has succeeded
    UNCACHED = "uncached"  #: none, where only these two were wanted
    ROOM = "room"  #: none, where the limits were asked alone: they leave room for it


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job that a submission became."""

    job_id: str
    created_at: float
    outcome: Outcome
    record: JobRecord | None = None  #: of a cached job, once its images were found


class JobQueue(QueueConnection):
    """The queue operations of a gateway."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.limits = {
            "max_queue": settings.max_queue,
            "queue_share": settings.queue_share,
            "max_batch_lines": settings.max_batch_lines,
            "max_webhooks": settings.max_webhooks,
        }
        #: Limits of the memory that jobs, images, files and batches may take, as the scripts read them; 0 is none.
        self.memory_limits = {"max_key_bytes": settings.max_key_mib * MIB, "max_bytes": settings.max_mib * MIB}
        self._follows_maxmemory = not settings.max_mib
        self._cache_s = settings.result_cache_s

    def set_maxmemory(self, maxmemory: int) -> None:
        """Learn how many bytes Redis may use, 0 for any number: FLUID_MAX_MIB=0 is a share of it."""
        if self._follows_maxmemory:
            self.memory_limits["max_bytes"] = int(maxmemory * COUNTED_SHARE)

    async def enqueue(self, submission: Submission) -> Accepted:
        """Accept a job, which from then on reaches exactly one terminal state. Safe to repeat.

        The source image is stored before, because no worker may find the job without it, and deleted again if the job
        was not accepted after all. The limits are asked before that, so a repeated request stores nothing, and a
        refused one neither, unless others took the last room in between.

        Raises:
            QueueFull, RateLimited: too many jobs wait. KeyReused: the id or key is that of another request.
            JobExpired: the job of this id ended and was deleted.
            NotReplicated: too few replicas of Redis have it; the job may exist, and the same call finds it.
            StorageUnavailable: the store of FLUID_RESULTS does not take the source image.
            JobCanceled: a line of a batch that has been canceled, or has ended.
        """
        if submission.source is None:
            return await self._enqueue(submission)
        asked = await self.ask(submission)
        if asked.outcome is not Outcome.ROOM:
            return asked
        name = await source_images.store(self, submission.job_id, submission.source)
        try:
            accepted = await self._enqueue(submission, source_object=name)
        except NotReplicated:  # the job may exist
            raise
        except RequestError:
            await source_images.delete(self, submission.job_id, name)
            raise
        if accepted.job_id != submission.job_id:
            await source_images.delete(self, submission.job_id, name)
        return accepted

    async def ask(self, submission: Submission) -> Accepted:
        """Find the job that this submission became before, or learn that it would be accepted now (ROOM). Nothing is
        queued.

        Raises:
            QueueFull, RateLimited, KeyReused, JobExpired, NotReplicated: as `enqueue`.
        """
        asked = await self._enqueue(submission, only="asked")
        if asked.outcome is not Outcome.ROOM:
            await self.replicated.confirm(self.keys.job_hash(asked.job_id))
        return asked

    async def cached(self, submission: Submission) -> Accepted | None:
        """Find the job of the same request, or the succeeded one of an equal request, without queueing anything.

        Raises:
            KeyReused, JobExpired: as `enqueue`.
        """
        found = await self._enqueue(submission, only="cached") if submission.cache_key else None
        return None if found is None or found.outcome is Outcome.UNCACHED else found

    async def _enqueue(self, submission: Submission, *, only: str = "", source_object: str = "") -> Accepted:
        """`only`: "cached" or "asked", to queue nothing."""
        job, text = submission.job, submission.job.to_json()
        source_bytes = len(submission.source or b"")
        outside_bytes = source_bytes if self.store else 0
        source_bytes -= outside_bytes
        # What the images take of Redis at most.
        reserved = 0 if self.store else job.n * job.width * job.height * job.channels
        args = {
            "id": submission.job_id,
            "input": text,
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
            "trace": submission.trace or None,
            "fingerprint": submission.fingerprint,
            "follow_events": submission.follow_events,
            "bytes": RECORD_BYTES + len(text) + source_bytes + reserved + CACHE_BYTES * bool(submission.cache_key),
            "reserved_bytes": reserved,
            "source_bytes": source_bytes or None,
            "source_object": source_object or None,
            "outside_bytes": outside_bytes or None,
            "cache_key": submission.cache_key or None,
            "cache_s": self._cache_s if submission.cache_key else None,
            "checkpoint": submission.checkpoint or None,
            "only": only or None,
            "waiter": submission.waiter or None,
            "limits": {**self.limits, **self.memory_limits, "max_jobs": submission.max_jobs},
        }
        answer, value, created_at = await self.run("enqueue", args, replicated=only != "asked")
        if answer in ("key_bytes", "bytes"):
            raise self.memory_refusal(answer, value, job.owner, "image" if submission.source else None)
        if answer != Outcome.NEW:
            refusal = job_refusal(answer, value, job.owner, job.model, self.limits, submission.max_jobs)
            if refusal is not None:
                raise refusal
        if answer == "over":
            raise JobCanceled(f"Batch {job.batch} takes no more lines: it was canceled, or has ended.")
        if answer == "no_source":
            raise NotReplicated("A failover of Redis lost the request's image.", retry_after_s=1)
        if answer == "late_source":
            raise StorageUnavailable(f"took longer than {source_images.UNCLAIMED_S} s to store the request's image")
        if answer == "gone":
            raise JobExpired(f"Job {value} has ended and was deleted; choose another id.")
        if answer in ("differs", "taken"):
            name = f"Idempotency-Key {submission.key!r}" if submission.key else f"job id {submission.job_id!r}"
            raise KeyReused(f"The {name} belongs to another request. Use a new one for a new request.")
        return Accepted(value, float(created_at or 0), Outcome(answer))

    def memory_refusal(self, outcome: str, used: str, owner: str, param: str | None = None) -> RequestError:
        """The error of a script's outcome key_bytes or bytes: the memory of this owner, or of all, is used up."""
        return memory_refusal(outcome, used, owner, self.memory_limits, param)

    async def get(self, job_id: str, owner: str | None = None, known: JobInput | None = None) -> JobRecord:
        """Read a job's record, except its input if that is `known`. With an `owner`, jobs of other owners are unknown.

        Raises:
            UnknownJob: no such job. JobExpired: it ended and was deleted. UnreadableRecord: see JobRecord.
        """
        raw = await read_hash(self.redis, self.keys.job_hash(job_id), f"Job {job_id[:100]!r}")
        if raw and owner in (None, raw.get("owner", "")):
            return JobRecord.from_fields(raw, known)
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
        """Load an image file from where its record says that it lies; None if it expired.

        Raises:
            StorageUnavailable: the store of FLUID_RESULTS does not respond, or this gateway has none.
        """
        if record.image is not None:
            return record.image
        if output.location:
            if self.store is None:
                raise StorageUnavailable("is not known to this gateway, whose FLUID_RESULTS is redis")
            return await self.store.get(output.location)
        key = self.keys.result_bytes(record.id, output.token, output.index)
        # The client decodes replies as text; images need the raw bytes.
        if output.size_bytes <= SHARED_BYTES:
            found = await self.redis.call("GET", key, decode=False)
        else:
            found = await self.redis.execute_command("GET", key, NEVER_DECODE=True)
        return cast("bytes | None", found or await self.redis.confirm("GET", key, decode=False))

    async def with_images(self, accepted: Accepted, submission: Submission) -> Accepted | None:
        """A cached job with its record, or None if one of its images is gone; others as they are. A store that does not
        respond counts as one that has them: the caller is told so when the image is read."""
        if accepted.outcome is not Outcome.CACHED:
            return accepted
        try:
            record = await self.get(accepted.job_id)
            if all([await self._is_there(record, output) for output in record.outputs]):
                return replace(accepted, record=record)
        except (UnknownJob, JobExpired):
            pass
        key = self.keys.idempotency_hash(submission.job.owner, submission.key)
        if submission.key and await self.redis.hget(key, "id") == accepted.job_id:
            await self.redis.delete(key)  # it would lead every repetition to the images that are gone
        return None

    async def _is_there(self, record: JobRecord, output: Output) -> bool:
        if not output.location:
            return bool(await self.redis.exists(self.keys.result_bytes(record.id, output.token, output.index)))
        with suppress(StorageUnavailable):
            return self.store is not None and await self.store.exists(output.location)
        return True

    async def backlog(self, model: str) -> int:
        """Waiting work of a model, in row-steps."""
        return int(await self.redis.hget(self.keys.counters_hash, f"work:{model}") or 0)

    async def sweep(self) -> None:
        """Abort waiting jobs past their deadline and forget expired ones. Any number of processes may call it."""
        await self.run("sweep", {"ttl_s": self.ttl_s})
