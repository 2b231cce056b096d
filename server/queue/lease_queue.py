"""The workers' side of the queue: take a job under a lease, renew it, save progress, finish once or requeue.

A lease is an entry with an expiry, which its worker extends while it lives. Every attempt has a fencing token of its
own, so a worker that fell silent and came back is rejected at the finish. Tokens are random, and made here: a failover
to a replica that lacks the last writes would repeat those of a counter in Redis.
"""

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from server.errors import StorageUnavailable
from server.jobs import JobError, JobInput, JobMetrics, JobState, Lease, Output, Resume
from server.queue.redis_client import Client, redis_time
from server.queue.scripts import QueueConnection
from server.records import UNREADABLE, shallow
from server.settings import Settings
from server.storage.object_names import expires_at

log = logging.getLogger(__name__)
RESUME_S = 600  # a stored file of an earlier attempt is used again if it outlives the record by as much
RESULT_EXTRA_S = 3600  # image files outlive the job's record, so a visible record never points at a deleted file
#: An image of at most this size travels to the gateway that waits for it in the message of its end. Redis drops a
#: subscriber that is behind by 8 MiB for a minute.
MESSAGE_BYTES = 32 << 10
#: Lua writes a number into a key with 14 digits. That two of a job's attempts share a token is as likely as 1 in 9e13.
TOKENS = 9 * 10**13
_random = random.Random()  # seeded by the system; a token is no secret


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """Progress of one held job; `running` is true once a row was admitted."""

    lease: Lease
    running: bool
    step: int


@dataclass(frozen=True, slots=True)
class Preempting:
    """The waiting jobs of a class that a worker without a free row takes, because they may preempt one."""

    any_caller: bool  #: all jobs that were submitted with this class
    others: bool  #: all jobs of callers who are not in `but`
    but: Sequence[str]


def new_token() -> int:
    return 1 + _random.randrange(TOKENS)


def shared_attempts(max_attempts: int) -> int:
    """Crashes cost every job in the batch an attempt, so the second half of a job's attempts run alone."""
    return (max_attempts + 1) // 2


class LeaseQueue(QueueConnection):
    """Operations of a worker. Every write under a lease is fenced by the lease's token."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.lease_ms = int(settings.lease_s * 1000)
        self.max_attempts = settings.max_attempts
        self.ageing_s = settings.ageing_s
        self._wakeups = redis.own_connection()
        self.leaves_stored = False  #: edits whose image lies in FLUID_RESULTS are left to workers that have it
        self._more_wait = True  #: jobs may wait that this worker has not been woken for

    async def take(
        self,
        worker: str,
        model: str,
        *,
        block_s: float | None = None,
        min_wait_s: float = 0.0,
        preempting: Mapping[str, Preempting] | None = None,
    ) -> Lease | None:
        """Take the next waiting job of the model; None if there is none after `block_s`.

        With `min_wait_s`, take only a job that has waited that long: an idle worker would have taken it by then.
        With `preempting`, take only such jobs, by class.
        """
        found = None
        if block_s is None or self._more_wait:
            found = await self._take(worker, model, min_wait_s, preempting)
        if found is None and block_s is not None:
            # A job that came meanwhile has left an entry in the list, unless another worker died with it in its hands.
            if await self._wakeups.call(("BLPOP", self.keys.wakeup_list(model), block_s)):
                found = await self._take(worker, model, min_wait_s)
            else:
                self._more_wait = True
        return found

    async def _take(
        self, worker: str, model: str, min_wait_s: float, preempting: Mapping[str, Preempting] | None = None
    ) -> Lease | None:
        wanted = None if preempting is None else {name: shallow(jobs) for name, jobs in preempting.items()}
        call = {"token": new_token(), "ageing_s": self.ageing_s, "min_wait_s": min_wait_s, "preempting": wanted}
        answer = await self.run("take", self._limits(worker, model) | call)
        lease, more = answer or (None, 0)
        self._more_wait = bool(more) or min_wait_s > 0
        return await self._lease(lease) if lease else None

    async def reclaim(self, worker: str, model: str, held: Iterable[str], *, count: int) -> list[Lease]:
        """Take over up to `count` jobs whose worker fell silent; `held` are the ids that this worker runs."""
        call = {"tokens": [new_token() for _ in range(count)], "held": list(held)}
        answers = await self.run("reclaim", self._limits(worker, model) | call)
        return [lease for answer in answers if (lease := await self._lease(answer)) is not None]

    def _limits(self, worker: str, model: str) -> dict[str, Any]:
        return {
            "worker": worker,
            "model": model,
            "lease_ms": self.lease_ms,
            "max_attempts": self.max_attempts,
            "ttl_s": self.ttl_s,
            "but_stored": self.leaves_stored or None,
        }

    async def _lease(self, answer: Sequence[Any]) -> Lease | None:
        """Decode what a script answered. None: this version cannot read the job, and it is requeued: a worker of the
        version that wrote it may take it before its attempts are used up."""
        try:
            return self._decode(answer)
        except UNREADABLE as error:
            job_id, token = answer[:2]
            log.error("job %s was written by another version and cannot be read: %r", job_id, error)
            failure = JobError("record_unreadable", f"The worker's version cannot read this job ({error!r}).")
            args = {"error": json.dumps(shallow(failure)), "max_attempts": self.max_attempts, "ttl_s": self.ttl_s}
            await self.run("requeue", {"id": job_id, "token": int(token or 0), "discard_progress": False} | args)
            return None

    def _decode(self, answer: Sequence[Any]) -> Lease:
        job_id, token, attempt, job, created_at, started_at, error, resumable, trace = answer
        runs_alone = int(attempt) > shared_attempts(self.max_attempts)
        return Lease(
            job_id=job_id,
            token=int(token),
            attempt=int(attempt),
            input=JobInput.from_json(job),
            created_at=float(created_at),
            started_at=float(started_at),
            suspect=bool(error) or runs_alone,
            resumable=bool(resumable),
            trace=trace,
        )

    async def renew(self, renewals: Sequence[LeaseRenewal], *, extend: bool) -> list[str]:
        """Write progress, and with `extend` extend each lease; "ok", "cancel" or "lost" for each."""
        if not renewals:
            return []
        jobs = [{"id": r.lease.job_id, "token": r.lease.token, "running": r.running, "step": r.step} for r in renewals]
        answers = await self.run("renew", {"lease_ms": self.lease_ms if extend else None, "jobs": jobs})
        return cast("list[str]", answers)

    async def save(
        self, lease: Lease, checkpoint: str, *, snapshots: Mapping[int, bytes], outputs: Sequence[Output] = ()
    ) -> None:
        """Save snapshots of unfinished rows, and finished images, for the job's next attempt."""
        fields = {"checkpoint": checkpoint.encode()}
        fields |= {f"snapshot:{index}": state for index, state in snapshots.items()}
        fields |= {f"output:{output.index}": json.dumps(shallow(output)).encode() for output in outputs}
        args = {"id": lease.job_id, "token": lease.token, "ttl_s": self.ttl_s, "fields": list(fields)}
        await self.run("save", args, *fields.values())

    async def resume(self, lease: Lease, checkpoint: str) -> Resume:
        """Load what an earlier attempt saved; empty if other weights made it: mixing them would corrupt the image."""
        raw = await self.redis.execute_command("HGETALL", self.keys.resume_hash(lease.job_id), NEVER_DECODE=True)
        fields = dict(zip(raw[::2], raw[1::2], strict=True)) if isinstance(raw, list) else raw
        if fields.get(b"checkpoint") != checkpoint.encode():
            return Resume()
        found = Resume.from_fields(fields)
        alive = {index: output for index, output in found.outputs.items() if await self._extend_result(lease, output)}
        return Resume(alive, found.snapshots)

    async def _extend_result(self, lease: Lease, output: Output) -> bool:
        """Restart the time to live of an earlier attempt's file; False if it is gone."""
        if output.location:  # its name says when it expires; the record must not outlive it
            ends = expires_at(output.location) or 0
            needed = await redis_time(self.redis) + self.result_ttl_s(lease) - RESULT_EXTRA_S + RESUME_S
            return ends >= needed and await self._is_stored(output.location)
        key = self.keys.result_bytes(lease.job_id, output.token, output.index)
        return bool(await self.redis.expire(key, self.result_ttl_s(lease)))

    async def _is_stored(self, name: str) -> bool:
        try:
            return self.store is not None and await self.store.exists(name)
        except StorageUnavailable:
            return False

    def result_ttl_s(self, lease: Lease) -> int:
        """How long the files of a job are kept that ends now, in seconds."""
        return (lease.input.result_ttl_s or self.ttl_s) + RESULT_EXTRA_S

    async def store_result(self, lease: Lease, index: int, data: bytes) -> None:
        """Store an image file before the finish, under a key that only this lease writes; does nothing if the lease was
        lost. A job's last file is stored by its finish."""
        args = {"id": lease.job_id, "token": lease.token, "index": index, "ttl_s": self.result_ttl_s(lease)}
        await self.run("store", args, data)

    async def store_preview(self, lease: Lease, index: int, number: int, data: bytes) -> None:
        """Store preview `number` of an image and announce it; does nothing if the lease was lost."""
        args = {"id": lease.job_id, "token": lease.token, "index": index, "number": number, "ttl_s": self.ttl_s}
        await self.run("preview", args, data)

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        outputs: Sequence[Output] = (),
        error: JobError | None = None,
        metrics: JobMetrics | None = None,
        files: Mapping[int, bytes] | None = None,
        checkpoint: str = "",
    ) -> JobState | None:
        """Write the terminal state, once, with the files that are not stored yet, by image index. `checkpoint` is the
        hash of the weights that generated the images; equal requests may get them from then on (FLUID_RESULT_CACHE_S).

        Returns the state that the job has: CANCELED if its caller was told so before. None, with nothing visible, if
        the lease was lost, or if Redis has lost a file that was stored before: then the job is requeued.
        """
        files = files or {}
        args = {
            "id": lease.job_id,
            "token": lease.token,
            "state": state,
            # JSON texts, as the record keeps them: Lua would write an empty list as an object.
            "outputs": json.dumps([shallow(output) for output in outputs]),
            "error": json.dumps(shallow(error)) if error else "",
            "metrics": json.dumps(shallow(metrics)) if metrics else "",
            "ttl_s": self.ttl_s,
            "steps": lease.input.work,
            "result_ttl_s": self.result_ttl_s(lease),
            "stored": [(each.token, each.index) for each in outputs if each.index not in files and not each.location],
            "result_bytes": sum(output.size_bytes for output in outputs if not output.location),  # of Redis
            "indices": list(files),
            "alone": (len(outputs) == len(files) == 1 and outputs[0].size_bytes <= MESSAGE_BYTES) or None,
            "checkpoint": checkpoint,
        }
        answer = await self.run("finish", args, *files.values())
        if answer == "incomplete":
            log.warning("Redis has lost a finished image of %s, as a failover may; requeueing it", lease.job_id)
            await self.requeue(lease, error=JobError("result_lost", "Redis lost a finished image of the job."))
            return None
        if answer == "fenced":
            return None
        if answer != JobState.SUCCEEDED:
            await self._delete_results(lease)
        return JobState(answer)

    async def requeue(self, lease: Lease, *, error: JobError | None = None, discard_progress: bool = False) -> str:
        """Return a job to the queue; the result is its new state, or "fenced".

        Without an error the attempt is not counted; with one, the last attempt's requeue fails the job.
        `discard_progress`: what was saved led to the error, so the next attempt must start from the beginning.
        """
        args = {
            "id": lease.job_id,
            "token": lease.token,
            "error": json.dumps(shallow(error)) if error else None,
            "max_attempts": self.max_attempts,
            "ttl_s": self.ttl_s,
            "discard_progress": discard_progress,
        }
        answer = await self.run("requeue", args)
        if answer in (JobState.CANCELED, JobState.FAILED) or (discard_progress and answer != "fenced"):
            await self._delete_results(lease)
        return str(answer)

    async def _delete_results(self, lease: Lease) -> None:
        """Delete the files of this attempt. Files of other attempts may be part of a result; they expire."""
        keys = [self.keys.result_bytes(lease.job_id, lease.token, index) for index in range(lease.input.n)]
        await self.redis.delete(*keys)
