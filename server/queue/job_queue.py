"""The life of a job in Redis: accepted, leased, renewed, finished once, given back, canceled.

Promise: every accepted job reaches exactly one terminal state and at most one result is ever visible for it;
execution is at-least-once. A lease is an entry with an end, which its worker moves on while it lives; its fencing
token rises at every start, so a worker that fell silent and came back is refused at the finish.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from server.errors import JobExpired, KeyReused, QueueFull, RateLimited, UnknownJob
from server.jobs import PRIORITIES, JobError, JobInput, JobMetrics, JobRecord, JobState, Lease, Output, Resume
from server.queue.keys import SCRIPTS, Keys, load_script
from server.queue.redis_client import Client
from server.queue.statistics import QueueCounts, QueuePosition
from server.settings import Settings

RESULT_EXTRA_S = 3600  # pictures outlive the job's record, so a visible record never points at nothing
RETRY_WHEN_FULL_S = 5  # the gateway replaces it by an estimate where it has one


@dataclass(frozen=True, slots=True)
class LeaseRenewal:
    """What a worker reports of one job; `running` is true once a row was admitted."""

    lease: Lease
    running: bool
    step: int


@dataclass(frozen=True, slots=True)
class Accepted:
    job_id: str
    created_at: float
    is_new: bool  #: False: this very request was accepted before


class JobQueue:
    """Used by the gateway (enqueue, get, cancel, result) and by workers (all the rest)."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.namespace)
        self.lease_ms = int(settings.lease_s * 1000)
        self.max_attempts = settings.max_attempts
        self.max_queue = settings.max_queue
        self.ttl_s = settings.result_ttl_s
        self.ageing_s = settings.ageing_s
        self._scripts = {name: redis.register_script(load_script(name)) for name in SCRIPTS}

    @property
    def shared_attempts(self) -> int:
        """Whoever shares rows with a job that kills its worker loses a try with it: the later half is drawn alone."""
        return (self.max_attempts + 1) // 2

    async def run(self, name: str, args: Iterable[Any]) -> Any:
        call = cast(Callable[..., Awaitable[Any]], self._scripts[name])
        return await call(keys=[self.keys.root], args=list(args))

    # --- the gateway's side -------------------------------------------------------------------------

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

    # --- the worker's side --------------------------------------------------------------------------

    async def take(
        self, worker: str, model: str, *, block_s: float | None = None, patience_s: float = 0.0
    ) -> Lease | None:
        """The next waiting job of the model, or None after `block_s`.

        With `patience_s` only a job that has waited that long: an idle worker would have had it by then.
        """
        found = await self._take(worker, model, patience_s)
        if found is None and block_s is not None and await self.redis.blpop(self.keys.bell_list(model), block_s):
            found = await self._take(worker, model, patience_s)
        return found

    async def _take(self, worker: str, model: str, patience_s: float) -> Lease | None:
        limits = [self.lease_ms, self.max_attempts, self.ttl_s]
        answer = await self.run("take", [model, worker, *limits, secrets.token_hex(8), self.ageing_s, patience_s])
        return self._lease(answer) if answer else None

    async def reclaim(self, worker: str, model: str, held: Iterable[str], *, count: int) -> list[Lease]:
        """Jobs whose worker fell silent. `held` are the ids that we still work on."""
        limits = [self.lease_ms, self.max_attempts, self.ttl_s]
        answers = await self.run("reclaim", [model, worker, *limits, count, *held])
        return [self._lease(answer) for answer in answers]

    def _lease(self, answer: Sequence[Any]) -> Lease:
        job_id, token, attempt, job, created_at, started_at, error, resumable = answer
        last_tries = int(attempt) > self.shared_attempts
        return Lease(
            job_id=job_id,
            token=int(token),
            attempt=int(attempt),
            input=JobInput.from_json(job),
            created_at=float(created_at),
            started_at=float(started_at),
            suspect=bool(error) or last_tries,
            resumable=bool(resumable),
        )

    async def pulse(self, pulses: Sequence[LeaseRenewal], *, renew: bool) -> list[str]:
        """Renew leases and write progress; answers "ok", "cancel" or "lost" for each."""
        if not pulses:
            return []
        args: list[Any] = [self.lease_ms if renew else 0]
        for p in pulses:
            args += [p.lease.job_id, p.lease.token, int(p.running), p.step]
        return cast("list[str]", await self.run("pulse", args))

    async def save(
        self, lease: Lease, checkpoint: str, *, snapshots: Mapping[int, bytes], outputs: Sequence[Output] = ()
    ) -> None:
        """Keep rows half done, and finished images, for whoever goes on with the job after us."""
        pairs: list[str | bytes] = ["checkpoint", checkpoint]
        for index, state in snapshots.items():
            pairs += [f"snapshot:{index}", state]
        for output in outputs:
            pairs += [f"output:{output.index}", json.dumps(asdict(output))]
        await self.run("save", [lease.job_id, lease.token, self.ttl_s, *pairs])

    async def resume(self, lease: Lease, checkpoint: str) -> Resume:
        """What an earlier try left. Nothing if other weights drew it: the picture would be of two minds."""
        raw = await self.redis.execute_command("HGETALL", self.keys.resume_hash(lease.job_id), NEVER_DECODE=True)
        fields = dict(zip(raw[::2], raw[1::2], strict=True)) if isinstance(raw, list) else raw
        if fields.get(b"checkpoint") != checkpoint.encode():
            return Resume()
        found = Resume.from_fields(fields)
        alive = {index: output for index, output in found.outputs.items() if await self._lives(lease, output)}
        return Resume(alive, found.snapshots)

    async def _lives(self, lease: Lease, output: Output) -> bool:
        """Files of earlier tries have their own time to live; it starts again here."""
        key = self.keys.result_bytes(lease.job_id, output.token, output.index)
        return bool(await self.redis.expire(key, self._result_ttl_s(lease)))

    def _result_ttl_s(self, lease: Lease) -> int:
        return (lease.input.result_ttl_s or self.ttl_s) + RESULT_EXTRA_S

    async def store_result(self, lease: Lease, index: int, data: bytes) -> None:
        """Before the finish, under a key that only this lease writes. A job's last goes with its finish."""
        key = self.keys.result_bytes(lease.job_id, lease.token, index)
        await self.redis.set(key, data, ex=self._result_ttl_s(lease))

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        outputs: Sequence[Output] = (),
        error: JobError | None = None,
        metrics: JobMetrics | None = None,
        files: Mapping[int, bytes] | None = None,
    ) -> bool:
        """Write the terminal state, once, with the files that are not stored yet.

        False: the lease was lost and nothing was written.
        """
        answer = await self.run(
            "finish",
            [
                lease.job_id,
                lease.token,
                state.value,
                json.dumps([asdict(o) for o in outputs]),
                json.dumps(asdict(error)) if error else "",
                json.dumps(asdict(metrics)) if metrics else "",
                self.ttl_s,
                lease.input.work,
                self._result_ttl_s(lease),
                *(part for pair in (files or {}).items() for part in pair),
            ],
        )
        if answer not in (JobState.SUCCEEDED, "fenced"):
            await self._forget_results(lease)
        return bool(answer != "fenced")

    async def give_back(self, lease: Lease, *, error: JobError | None = None, anew: bool = False) -> str:
        """Return a job. Without an error the try is not counted; with one it fails at the last try.

        `anew`: what was kept of it led to the error, and the next try shall not go on from there.
        """
        failure = json.dumps(asdict(error)) if error else ""
        limits = [self.max_attempts, self.ttl_s]
        answer = await self.run("give_back", [lease.job_id, lease.token, failure, *limits, int(anew)])
        if answer in (JobState.CANCELED, JobState.FAILED) or (anew and answer != "fenced"):
            await self._forget_results(lease)
        return str(answer)

    async def _forget_results(self, lease: Lease) -> None:
        """Those of this try. Others' may be part of a result; they expire by themselves."""
        keys = [self.keys.result_bytes(lease.job_id, lease.token, i) for i in range(lease.input.n)]
        await self.redis.delete(*keys)

    # --- in numbers ---------------------------------------------------------------------------------

    async def counts(self) -> QueueCounts:
        """Everything at one moment: counters, and the structures that must agree with them."""
        models = await self.redis.hkeys(self.keys.models_hash)
        lines = [self.keys.since_zset(model, priority) for model in models for priority in PRIORITIES]
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self.keys.counters_hash)
            pipe.xlen(self.keys.dead_stream)
            pipe.zcard(self.keys.ended_zset)
            pipe.time()
            for line in lines:
                pipe.zcard(line)
                pipe.zrange(line, 0, 0, withscores=True)
            for model in models:
                pipe.zcard(self.keys.leases_zset(model))
            raw, dead, kept, (seconds, micros), *rest = await pipe.execute()
        sizes, oldest, leases = rest[: 2 * len(lines) : 2], rest[1 : 2 * len(lines) : 2], rest[2 * len(lines) :]
        now = seconds + micros / 1e6
        waiting = [(model, priority) for model in models for priority in PRIORITIES]
        return QueueCounts(
            submitted={k.split(":")[1]: int(v) for k, v in raw.items() if k.startswith("submitted:")},
            states={s.value: int(raw.get(f"state:{s.value}", 0)) for s in JobState},
            redeliveries=int(raw.get("redeliveries", 0)),
            fenced=int(raw.get("fenced", 0)),
            dead_lettered=int(raw.get("dead_lettered", 0)),
            expired=int(raw.get("expired", 0)),
            dead_letter_depth=dead,
            oldest_age_s=max([0.0, *(now - first[0][1] for first in oldest if first)]),
            waiting=dict(zip(waiting, sizes, strict=True)),
            waiting_work={model: int(raw.get(f"work:{model}", 0)) for model in models},
            leases=sum(leases),
            kept=kept,
        )
