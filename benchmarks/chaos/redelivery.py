"""How long a dead or frozen worker's jobs wait for another one.

A sample is the time from the worker's silence to the beginning of the next try, by the job's own record: raw. Once the
lease is over, time in which Valkey itself is away or paused is not counted against the workers; everything else is,
also that all of them were dead or full. Those later than a lease and GRACE_S come with what stood in their way.
All clocks are this machine's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from subprocess import Popen

from redis.exceptions import RedisError

from benchmarks.chaos.cast import Cast
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import shared_attempts
from server.queue.registry import Registry

LOOK_S = 0.1
GRACE_S = 1.0  # a redelivery may take a lease and this
MODEL = "fake"
FIELDS = ("state", "token", "worker", "started_at", "attempt", "error", "input")
Span = tuple[float, float]  # wall clock


@dataclass(frozen=True)
class Held:
    """A job as its hash shows it."""

    state: JobState
    token: int
    worker: str
    started_at: float
    prompt: str
    quarantined: bool  # drawn alone: until it is over, its worker takes nothing else


class Redeliveries:
    """Watches the jobs of silent workers."""

    def __init__(self, cast: Cast, queue: JobQueue) -> None:
        self.seconds: list[float] = []
        self.raw: list[float] = []
        self.late: list[str] = []
        self.tries: dict[str, dict[int, str]] = {}  # job id -> token -> what that try looked like
        self._away: list[Span] = []  # Valkey
        self._away_since: float | None = None
        self._crowded: list[Span] = []  # no other worker had room, as far as anybody could tell
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
        """While Valkey is away. One at a time."""
        self._away_since = time.time()
        try:
            yield
        finally:
            self._away.append((self._away_since, time.time()))
            self._away_since = None

    async def forever(self) -> None:
        looked_at = time.time()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                leased = await self._leased()
                jobs = await self._look({*leased, *self._watched})
                rooms = await self._rooms([jobs[job_id] for job_id in leased if job_id in jobs])
            except RedisError:
                continue
            now = time.time()
            if not rooms:
                self._crowded.append((looked_at, now))
            looked_at = now
            self._remember({job_id: jobs[job_id] for job_id in leased if job_id in jobs})
            for job_id, (token, since) in list(self._watched.items()):
                job = jobs[job_id]
                if job.token != token or job.state.terminal:
                    del self._watched[job_id]
                    self._record(job_id, job, since)

    def _remember(self, held: dict[str, Held]) -> None:
        """Who drew a job, and what else was on that worker then: the story of a job that runs out of tries."""
        for job_id, job in held.items():
            company = [
                f"{other.prompt!r}" for key, other in held.items() if other.worker == job.worker and key != job_id
            ]
            story = f"from {_clock(job.started_at)} on {job.worker}, last seen with {sorted(company)}"
            self.tries.setdefault(job_id, {})[job.token] = story

    def story(self, job_id: str) -> str:
        return "".join(f"\n    try: {tried}" for _, tried in sorted(self.tries.get(job_id, {}).items()))

    def _record(self, job_id: str, job: Held, since: float) -> None:
        if job.started_at <= since:  # canceled, or its old worker woke up in time and finished it
            return
        waited: Span = (since + self._cast.lease_s, job.started_at)  # with no lease
        away = [*self._away, (self._away_since, time.time())] if self._away_since else self._away
        away_s, crowded_s = _overlap(waited, away), _overlap(waited, self._crowded)
        self.raw.append(job.started_at - since)
        self.seconds.append(self.raw[-1] - away_s)
        if self.raw[-1] > self._cast.lease_s + GRACE_S:
            self.late.append(
                f"{job_id}: its worker fell silent at {_clock(since)}; {self.raw[-1]:.2f} s later {job.worker} had it. "
                f"After its lease Valkey was away for {away_s:.2f} s, and for {crowded_s:.2f} s no worker had room"
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
        prompt = json.loads(text)["prompt"]
        last_tries = int(attempt) > shared_attempts(self._cast.settings.max_attempts)
        quarantined = bool(error) or last_tries or prompt.startswith("[")
        return Held(JobState(state), int(token), worker or "", float(started_at or 0), prompt, quarantined)


def _overlap(span: Span, others: Iterable[Span]) -> float:
    """Seconds of `span` that lie in any of the others, which do not overlap each other."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in others)


def _clock(at: float) -> str:
    return time.strftime("%T", time.localtime(at))
