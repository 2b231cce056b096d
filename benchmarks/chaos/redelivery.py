"""How long a dead or frozen worker's jobs wait for another one.

The clock of a sample starts when the worker falls silent, or when the last thing that made a redelivery impossible is
over, whichever is later: Valkey away or paused, or no other worker ready. It stops when another try begins, by the time
in the job's own record. All clocks are this machine's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import Popen

from redis.exceptions import RedisError

from benchmarks.chaos.cast import Cast
from server.jobs import JobState
from server.queue import Queue
from server.registry import Registry

LOOK_S = 0.05
GRACE_S = 1.0  # a redelivery may take a lease and this
MODEL = "fake"


class Redeliveries:
    """Watches the jobs of silent workers."""

    def __init__(self, cast: Cast, queue: Queue) -> None:
        self.seconds: list[float] = []
        self.late: list[str] = []  # what is known about those that took longer than a lease and GRACE_S
        self.blocked_until = 0.0  # wall clock; a redelivery was impossible until then
        self._blockers = 0
        self._cast = cast
        self._queue = queue
        self._registry = Registry(queue.redis, queue.keys.namespace)
        self._watched: dict[str, tuple[str, float]] = {}  # job id -> token of the lease that fell silent, since when

    async def watch(self, worker: Popen[bytes]) -> None:
        """Call right after the worker was silenced: what it holds now, it will hold until the lease lapses."""
        since = time.time()
        try:
            for job_id in await self._queue.redis.zrange(self._queue.keys.leases_zset(MODEL), 0, -1):
                owner, token = await self._queue.redis.hmget(self._queue.keys.job_hash(job_id), "worker", "token")
                if owner and f"-{worker.pid}-" in owner:
                    self._watched[job_id] = (token, since)
        except RedisError:
            return  # Valkey is being tormented; there will be other samples

    @asynccontextmanager
    async def impossible(self) -> AsyncIterator[None]:
        """While Valkey is away."""
        self._blockers += 1
        try:
            yield
        finally:
            self._blockers -= 1
            self.blocked_until = time.time()

    async def forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._blockers or not await self._anybody_ready():
                    self.blocked_until = time.time()
                for job_id in list(self._watched):
                    await self._look(job_id)
            except RedisError:
                continue

    async def _anybody_ready(self) -> bool:
        able = {f"-{worker.pid}-" for worker in self._cast.able_workers()}
        return any(info.ready and any(pid in info.id for pid in able) for info in await self._registry.workers())

    async def _look(self, job_id: str) -> None:
        token, since = self._watched[job_id]
        state, now, started_at = await self._queue.redis.hmget(
            self._queue.keys.job_hash(job_id), "state", "token", "started_at"
        )
        if now == token and not JobState(state).terminal:
            return
        del self._watched[job_id]
        if float(started_at) > since:  # else it was canceled, or its old worker woke up and finished it
            began = max(since, min(self.blocked_until, float(started_at)))
            self.seconds.append(float(started_at) - began)
            if self.seconds[-1] > self._cast.lease_s + GRACE_S:
                self.late.append(await self._describe(job_id, since, began, float(started_at)))

    async def _describe(self, job_id: str, since: float, began: float, started_at: float) -> str:
        """For whoever looks for the reason."""
        state = ", ".join(
            f"{info.id.split('-')[-2]} {info.state} {info.rows}/{info.max_rows} rows"
            for info in await self._registry.workers()
        )
        return (
            f"{job_id}: its worker fell silent at {time.strftime('%T', time.localtime(since))}; it could be taken "
            f"{began - since:.2f} s later and was {started_at - since:.2f} s later; workers now: {state}"
        )
