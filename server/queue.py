"""The life of a job in Redis: accepted, leased, renewed, finished once, given back, canceled.

Promise: every accepted job reaches exactly one terminal state and at most one result is ever visible for it;
execution is at-least-once. A lease is the entry's place in the group's pending list; its fencing token
rises at every start, so a worker that fell silent and came back is refused at the finish.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from redis.exceptions import ResponseError

from server.connection import Client
from server.errors import JobExpired, QueueFull, UnknownJob
from server.jobs import (
    JobError,
    JobInput,
    JobMetrics,
    JobRecord,
    JobState,
    Lease,
    Output,
    QueueCounts,
)
from server.keys import GROUP, SCRIPTS, Keys, load_script
from server.settings import Settings

CONSUMER_DEAD_MS = 3_600_000  # a living one asks for work several times per second
RESULT_EXTRA_S = 3600  # pictures outlive the job's record, so a visible record never points at nothing


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a worker reports of one job; `running` is true once a row was admitted."""

    lease: Lease
    running: bool
    step: int


class Queue:
    """Used by the gateway (enqueue, get, cancel, result) and by workers (all the rest)."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        self.redis = redis
        self.keys = Keys(settings.namespace)
        self.lease_ms = int(settings.lease_s * 1000)
        self.max_attempts = settings.max_attempts
        self.max_queue = settings.max_queue
        self.ttl_s = settings.result_ttl_s
        self._scripts = {name: redis.register_script(load_script(name)) for name in SCRIPTS}

    async def open(self) -> None:
        """Create stream and group. From 0, not $: jobs accepted before the group existed must be seen."""
        try:
            await self.redis.xgroup_create(self.keys.jobs_stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _run(self, name: str, keys: Sequence[str], args: Iterable[Any]) -> Any:
        call = cast(Callable[..., Awaitable[Any]], self._scripts[name])
        return await call(keys=list(keys), args=list(args))

    # --- the gateway's side -------------------------------------------------------------------------

    async def enqueue(self, job_id: str, job: JobInput, kind: str) -> float:
        """Accept the job; returns its creation time. After this it will reach exactly one terminal state."""
        answer, value = await self._run(
            "enqueue", self.keys.for_job(job_id), [job_id, job.to_json(), kind, self.max_queue]
        )
        if answer == "full":
            raise QueueFull(
                f"{value} jobs are waiting, the limit is {self.max_queue} (FLUID_MAX_QUEUE). Try later.",
                retry_after_s=5,
            )
        return float(value)

    async def get(self, job_id: str) -> JobRecord:
        raw = await self.redis.hgetall(self.keys.job_hash(job_id))
        if raw:
            return JobRecord.from_fields(raw)
        if await self.redis.exists(self.keys.tombstone(job_id)):
            raise JobExpired(f"Job {job_id} is over and its result was deleted after {self.ttl_s} s.")
        raise UnknownJob(f"No job has the id {job_id!r}. Ids come from POST /v1/jobs.", param="job_id")

    async def position(self, record: JobRecord) -> int | None:
        """How many jobs are ahead of a waiting one; None once a worker has it."""
        if record.state is not JobState.QUEUED:
            return None
        taken = int(await self.redis.hget(self.keys.counters_hash, "taken") or 0)
        return max(0, record.sequence - taken - 1)

    async def cancel(self, job_id: str) -> JobRecord:
        """A waiting job ends here; a running one is flagged and ends within one step. Safe to repeat."""
        await self._run("cancel", self.keys.for_job(job_id), [GROUP, job_id, self.ttl_s, self.keys.done_channel])
        return await self.get(job_id)

    async def result(self, record: JobRecord, index: int) -> bytes | None:
        key = self.keys.result_bytes(record.id, record.token, index)
        # The client decodes answers as text; pictures need the raw reply.
        raw = await self.redis.execute_command("GET", key, NEVER_DECODE=True)
        return cast("bytes | None", raw)

    # --- the worker's side --------------------------------------------------------------------------

    async def take(self, consumer: str, *, block_ms: int | None = None) -> Lease | None:
        """The next waiting job, or None. Canceled ones are skipped here."""
        while True:
            found = await self.redis.xreadgroup(GROUP, consumer, {self.keys.jobs_stream: ">"}, count=1, block=block_ms)
            if not found:
                return None
            [(entry, fields)] = found[0][1]
            lease = await self._start(entry, fields["id"])
            if lease is not None:
                return lease

    async def reclaim(self, consumer: str, held: set[str], *, count: int) -> list[Lease]:
        """Jobs whose worker fell silent, or gave them back. `held` are entries we still work on."""
        leases: list[Lease] = []
        cursor = "0-0"
        while len(leases) < count:
            # One call looks at a few entries only: without the cursor, running jobs would hide lapsed ones behind them.
            cursor, entries, _ = await self.redis.xautoclaim(
                self.keys.jobs_stream, GROUP, consumer, self.lease_ms, start_id=cursor, count=count - len(leases)
            )
            for entry, fields in entries:
                if entry in held:  # our own late renewal; claiming it has renewed it
                    continue
                lease = await self._start(entry, fields["id"])
                if lease is not None:
                    leases.append(lease)
            if cursor == "0-0":
                break
        return leases

    async def _start(self, entry: str, job_id: str) -> Lease | None:
        answer = await self._run(
            "start",
            self.keys.for_job(job_id),
            [GROUP, entry, job_id, self.max_attempts, self.ttl_s, self.keys.done_channel, secrets.token_hex(8)],
        )
        if answer[0] != "ok":
            return None
        token, attempt, job, created_at, started_at, error = answer[1:]
        last_try = int(attempt) == self.max_attempts > 1
        return Lease(
            job_id=job_id,
            entry=entry,
            token=int(token),
            attempt=int(attempt),
            input=JobInput.from_json(job),
            created_at=float(created_at),
            started_at=float(started_at),
            suspect=bool(error) or last_try,
        )

    async def pulse(self, consumer: str, pulses: Sequence[Pulse], *, renew: bool) -> list[str]:
        """Renew leases and write progress; answers "ok", "cancel" or "lost" for each."""
        if not pulses:
            return []
        keys = [self.keys.jobs_stream, self.keys.counters_hash, self.keys.dead_stream]
        args: list[Any] = [GROUP, consumer, int(renew)]
        for p in pulses:
            keys.append(self.keys.job_hash(p.lease.job_id))
            args += [p.lease.entry, p.lease.token, int(p.running), p.step]
        return cast("list[str]", await self._run("pulse", keys, args))

    async def store_result(self, lease: Lease, index: int, data: bytes) -> None:
        """Before the finish, under a key that only this lease writes."""
        key = self.keys.result_bytes(lease.job_id, lease.token, index)
        await self.redis.set(key, data, ex=self.ttl_s + RESULT_EXTRA_S)

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        outputs: Sequence[Output] = (),
        error: JobError | None = None,
        metrics: JobMetrics | None = None,
    ) -> bool:
        """Write the terminal state, once. False: the lease was lost and nothing was written."""
        steps = lease.input.n * lease.input.num_inference_steps
        answer = await self._run(
            "finish",
            self.keys.for_job(lease.job_id),
            [
                GROUP,
                lease.entry,
                lease.job_id,
                lease.token,
                state.value,
                json.dumps([asdict(o) for o in outputs]),
                json.dumps(asdict(error)) if error else "",
                json.dumps(asdict(metrics)) if metrics else "",
                self.ttl_s,
                self.keys.done_channel,
                steps,
            ],
        )
        if answer != JobState.SUCCEEDED:
            await self._forget_results(lease)
        return bool(answer != "fenced")

    async def give_back(self, lease: Lease, *, error: JobError | None = None) -> str:
        """Return a job. Without an error the try is not counted; with one it fails at the last try."""
        answer = await self._run(
            "give_back",
            self.keys.for_job(lease.job_id),
            [
                GROUP,
                lease.entry,
                lease.job_id,
                lease.token,
                json.dumps(asdict(error)) if error else "",
                self.max_attempts,
                self.lease_ms,
                self.ttl_s,
                self.keys.done_channel,
            ],
        )
        await self._forget_results(lease)
        return str(answer)

    async def _forget_results(self, lease: Lease) -> None:
        keys = [self.keys.result_bytes(lease.job_id, lease.token, i) for i in range(lease.input.n)]
        await self.redis.delete(*keys)

    # --- in numbers ---------------------------------------------------------------------------------

    async def counts(self) -> QueueCounts:
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self.keys.counters_hash)
            pipe.xlen(self.keys.dead_stream)
            pipe.xinfo_groups(self.keys.jobs_stream)
            pipe.time()
            raw, dead, groups, (seconds, micros) = await pipe.execute()
        age = 0.0
        last = next((g["last-delivered-id"] for g in groups if g["name"] == GROUP), "0-0")
        oldest = await self.redis.xrange(self.keys.jobs_stream, min=f"({last}", count=1)
        if oldest:
            age = max(0.0, seconds + micros / 1e6 - int(oldest[0][0].split("-")[0]) / 1000)
        return QueueCounts(
            submitted={k.split(":")[1]: int(v) for k, v in raw.items() if k.startswith("submitted:")},
            states={s.value: int(raw.get(f"state:{s.value}", 0)) for s in JobState},
            redeliveries=int(raw.get("redeliveries", 0)),
            fenced=int(raw.get("fenced", 0)),
            dead_lettered=int(raw.get("dead_lettered", 0)),
            dead_letter_depth=dead,
            oldest_age_s=age,
        )

    async def leave(self, consumer: str) -> None:
        """Remove our consumer, and those that dead workers left behind, unless they hold entries."""
        await self._run("leave", [self.keys.jobs_stream], [GROUP, consumer, CONSUMER_DEAD_MS])
