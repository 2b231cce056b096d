"""Redelivery time: how long the jobs of a dead or frozen worker wait for the next attempt.

A raw sample is the time from the worker's last sign of life to the start of the next attempt, by the job's own record.
From that, the time after the lease's expiry in which Valkey itself was down or paused is subtracted; nothing else is,
not even that all workers were dead or full. Samples later than the lease plus GRACE_S are reported with their cause.
All times are Redis' own: its clock may be made to jump. Samples that span a jump are dropped.
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

POLL_S = 0.1
GRACE_S = 1.0  # a redelivery may take this much longer than a lease
MODEL = "fake"
FIELDS = ("state", "token", "worker", "started_at", "attempt", "error", "input")
Span = tuple[float, float]  # wall clock


@dataclass(frozen=True)
class HeldJob:
    """A job as stored in its Redis hash."""

    state: JobState
    token: int
    worker: str
    started_at: float
    prompt: str
    quarantined: bool  # runs alone: until it ends, its worker takes nothing else


class Redeliveries:
    """Watches the jobs of dead and frozen workers."""

    def __init__(self, cast: Cast, queue: JobQueue) -> None:
        self.seconds: list[float] = []
        self.raw: list[float] = []
        self.late: list[str] = []
        self.attempts: dict[str, dict[int, str]] = {}  # job id -> token -> description of that attempt
        self._outages: list[Span] = []  # of Valkey
        self._down_since: float | None = None
        self._saturated: list[Span] = []  # no worker had a free row, by heartbeats and leases
        self._cast = cast
        self._queue = queue
        self._registry = Registry(queue.redis, queue.keys.namespace)
        self._watched: dict[str, tuple[int, float]] = {}  # job id -> token of the dead lease, since when

    async def watch(self, worker: Popen[bytes]) -> None:
        """Watch the worker's jobs; call right after it was killed or frozen: it holds them until the lease expires."""
        since = self._now()
        try:
            held = await self._read(await self._leased())
        except RedisError:
            return  # Valkey is down as well; there will be other samples
        self._watched |= {job_id: (job.token, since) for job_id, job in held.items() if f"-{worker.pid}-" in job.worker}

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Record an outage of Valkey; one at a time."""
        self._down_since = self._now()
        try:
            yield
        finally:
            self._outages.append((self._down_since, self._now()))
            self._down_since = None

    def _now(self) -> float:
        return time.time() + (self._cast.clocks.offsets.get("valkey", 0.0) if self._cast.clocks else 0.0)

    def drop(self) -> None:
        """Drop the samples that are being taken: Redis' clock jumps."""
        self._watched.clear()

    async def run(self) -> None:
        """Poll leased and watched jobs until canceled."""
        polled_at = self._now()
        while True:
            await asyncio.sleep(POLL_S)
            try:
                leased = await self._leased()
                jobs = await self._read({*leased, *self._watched})
                free = await self._free_workers([jobs[job_id] for job_id in leased if job_id in jobs])
            except RedisError:
                continue
            now = self._now()
            if not free:
                self._saturated.append((polled_at, now))
            polled_at = now
            self._remember({job_id: jobs[job_id] for job_id in leased if job_id in jobs})
            for job_id, (token, since) in list(self._watched.items()):
                job = jobs.get(job_id)
                if job is None:  # a failover has lost it
                    del self._watched[job_id]
                elif job.token != token or job.state.terminal:
                    del self._watched[job_id]
                    self._record(job_id, job, since)

    def _remember(self, held: dict[str, HeldJob]) -> None:
        """Remember each attempt's worker and the other jobs there, to explain a job that runs out of attempts."""
        for job_id, job in held.items():
            others = [
                f"{other.prompt!r}" for key, other in held.items() if other.worker == job.worker and key != job_id
            ]
            text = f"from {_clock(job.started_at)} on {job.worker}, last seen with {sorted(others)}"
            self.attempts.setdefault(job_id, {})[job.token] = text

    def history(self, job_id: str) -> str:
        """Return one line per known attempt of a job."""
        return "".join(f"\n    attempt: {text}" for text in self.attempts.get(job_id, {}).values())

    def _record(self, job_id: str, job: HeldJob, since: float) -> None:
        if job.started_at <= since:  # canceled, or its old worker woke up in time and finished it
            return
        waited: Span = (since + self._cast.lease_s, job.started_at)  # after the lease expired
        outages = [*self._outages, (self._down_since, self._now())] if self._down_since else self._outages
        down_s, saturated_s = _overlap(waited, outages), _overlap(waited, self._saturated)
        self.raw.append(job.started_at - since)
        self.seconds.append(self.raw[-1] - down_s)
        if self.raw[-1] > self._cast.lease_s + GRACE_S:
            self.late.append(
                f"{job_id}: its worker stopped at {_clock(since)}; {job.worker} started it {self.raw[-1]:.2f} s later. "
                f"After the lease expired, Valkey was down for {down_s:.2f} s, and no worker had a free row "
                f"for {saturated_s:.2f} s"
            )

    async def _free_workers(self, leased: list[HeldJob]) -> list[str]:
        """Return the workers that could take one more job, by their heartbeats and the leases."""
        live = {f"-{worker.pid}-" for worker in self._cast.live_workers()}
        alone = {job.worker for job in leased if job.quarantined}
        return [
            info.id
            for info in await self._registry.workers()
            if info.ready and info.rows < info.max_rows and info.id not in alone and any(pid in info.id for pid in live)
        ]

    async def _leased(self) -> set[str]:
        return set(await self._queue.redis.zrange(self._queue.keys.leases_zset(MODEL), 0, -1))

    async def _read(self, job_ids: set[str]) -> dict[str, HeldJob]:
        async with self._queue.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(self._queue.keys.job_hash(job_id), *FIELDS)
            rows = await pipe.execute()
        return {job_id: self._held(*row) for job_id, row in zip(job_ids, rows, strict=True) if row[0]}

    def _held(
        self, state: str, token: str, worker: str, started_at: str, attempt: str, error: str, text: str
    ) -> HeldJob:
        prompt = json.loads(text)["prompt"]
        last_attempts = int(attempt) > shared_attempts(self._cast.settings.max_attempts)
        quarantined = bool(error) or last_attempts or prompt.startswith("[")
        return HeldJob(JobState(state), int(token), worker or "", float(started_at or 0), prompt, quarantined)


def _overlap(span: Span, others: Iterable[Span]) -> float:
    """Return the seconds of `span` that lie in any of the others, which do not overlap each other."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in others)


def _clock(at: float) -> str:
    return time.strftime("%T", time.localtime(at))
