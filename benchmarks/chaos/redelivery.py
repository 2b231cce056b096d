"""How long a dead or frozen worker's jobs wait for another one.

A sample is the time from the worker's silence to the beginning of the next try, by the job's own record. Not counted is
what comes after the end of the lease while nobody could have taken the job: Valkey away or paused, or no other worker
with room. The raw times, whatever lay between, are kept beside them. All clocks are this machine's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from subprocess import Popen

from redis.exceptions import RedisError

from benchmarks.chaos.cast import Cast
from server.jobs import JobState
from server.queue import Queue
from server.registry import Registry

LOOK_S = 0.1
GRACE_S = 1.0  # a redelivery may take a lease and this
MODEL = "fake"
FIELDS = ("state", "token", "worker", "started_at", "attempt", "error", "input")


@dataclass(frozen=True)
class Held:
    """A job as its hash shows it."""

    state: JobState
    token: int
    worker: str
    started_at: float
    quarantined: bool  # drawn alone: until it is over, its worker takes nothing else


class Redeliveries:
    """Watches the jobs of silent workers."""

    def __init__(self, cast: Cast, queue: Queue) -> None:
        self.seconds: list[float] = []
        self.raw: list[float] = []
        self.late: list[str] = []  # what is known about those that took longer than a lease and GRACE_S
        self._possible_since = 0.0  # wall clock
        self._outages = 0
        self._cast = cast
        self._queue = queue
        self._registry = Registry(queue.redis, queue.keys.namespace)
        self._watched: dict[str, tuple[int, float]] = {}  # job id -> token of the lease that fell silent, since when

    async def watch(self, worker: Popen[bytes]) -> None:
        """Call right after the worker was silenced: what it holds now, it will hold until the lease lapses."""
        since = time.time()
        try:
            held = await self._look(await self._leased())
        except RedisError:
            return  # Valkey is being tormented; there will be other samples
        self._watched |= {job_id: (job.token, since) for job_id, job in held.items() if f"-{worker.pid}-" in job.worker}

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """While Valkey is away."""
        self._outages += 1
        try:
            yield
        finally:
            self._outages -= 1
            self._possible_since = time.time()

    async def forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                leased = await self._leased()
                jobs = await self._look({*leased, *self._watched})
                rooms = await self._rooms([jobs[job_id] for job_id in leased if job_id in jobs])
            except RedisError:
                continue
            if self._outages or not rooms:
                self._possible_since = time.time()
            for job_id, (token, since) in list(self._watched.items()):
                job = jobs[job_id]
                if job.token != token or job.state.terminal:
                    del self._watched[job_id]
                    self._record(job_id, job, since, rooms)

    def _record(self, job_id: str, job: Held, since: float, rooms: list[str]) -> None:
        if job.started_at <= since:  # canceled, or its old worker woke up in time and finished it
            return
        lapsed = since + self._cast.lease_s
        hindered_s = max(0.0, min(self._possible_since, job.started_at) - lapsed)
        self.raw.append(job.started_at - since)
        self.seconds.append(self.raw[-1] - hindered_s)
        if self.seconds[-1] > self._cast.lease_s + GRACE_S:
            when = time.strftime("%T", time.localtime(since))
            self.late.append(
                f"{job_id}: its worker fell silent at {when}; {self.raw[-1]:.2f} s later it was taken by {job.worker}, "
                f"{hindered_s:.2f} s of it could not be helped; room then at: {', '.join(rooms) or 'nobody'}"
            )

    async def _rooms(self, leased: list[Held]) -> list[str]:
        """Workers who could take one more job, as far as their heartbeats and the leases tell."""
        able = {f"-{worker.pid}-" for worker in self._cast.able_workers()}
        alone = {job.worker for job in leased if job.quarantined}
        return [
            info.id
            for info in await self._registry.workers()
            if info.ready and info.rows < info.max_rows and info.id not in alone and any(pid in info.id for pid in able)
        ]

    async def _leased(self) -> set[str]:
        return set(await self._queue.redis.zrange(self._queue.keys.leases_zset(MODEL), 0, -1))

    async def _look(self, job_ids: set[str]) -> dict[str, Held]:
        async with self._queue.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(self._queue.keys.job_hash(job_id), *FIELDS)
            rows = await pipe.execute()
        return {job_id: self._held(*row) for job_id, row in zip(job_ids, rows, strict=True) if row[0]}

    def _held(self, state: str, token: str, worker: str, started_at: str, attempt: str, error: str, text: str) -> Held:
        poison = json.loads(text)["prompt"].startswith("[")
        last_try = int(attempt) == self._cast.settings.max_attempts
        quarantined = bool(error) or last_try or poison
        return Held(JobState(state), int(token), worker or "", float(started_at or 0), quarantined)
