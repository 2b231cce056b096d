"""What goes wrong, and how long until a dead worker's jobs are in other hands."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from random import Random
from subprocess import Popen

import redis.exceptions

from benchmarks.chaos.cast import Cast
from server.queue import Queue

MODEL = "fake"


class Faults:
    """One at a time, in random order with random pauses."""

    def __init__(self, cast: Cast, queue: Queue, random: Random):
        self.cast, self.queue, self.random = cast, queue, random
        self.redelivery_s: list[float] = []
        self.redis_faults = 0
        self.watches: set[asyncio.Task[None]] = set()

    async def until(self, stop: asyncio.Event) -> None:
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self.kill_worker: 30, self.freeze_worker: 20, self.drain_worker: 12, self.kill_gateway: 15,
            self.kill_valkey: 8, self.pause_valkey: 10,
        }  # fmt: skip
        while not stop.is_set():
            await asyncio.sleep(self.random.uniform(0.5, 2.5))
            await self.random.choices(list(kinds), list(kinds.values()))[0]()
        for watch in self.watches:
            watch.cancel()

    async def kill_worker(self) -> None:
        worker = self.cast.a_worker(self.random)
        if worker is None:
            return
        held = await self._held(worker)
        self.cast.hit("worker", worker, signal.SIGKILL)
        task = asyncio.create_task(self._watch(held, time.monotonic(), self.redis_faults))
        self.watches.add(task)
        task.add_done_callback(self.watches.discard)

    async def freeze_worker(self) -> None:
        """A zombie: silent for longer than its lease, then awake and sure of itself."""
        worker = self.cast.a_worker(self.random)
        if worker is None:
            return
        self.cast.stopped.add(worker.pid)
        self.cast.hit("zombie", worker, signal.SIGSTOP)
        await asyncio.sleep(self.cast.settings.lease_s + self.random.uniform(0.3, 1.2))
        worker.send_signal(signal.SIGCONT)
        self.cast.stopped.discard(worker.pid)

    async def drain_worker(self) -> None:
        worker = self.cast.a_worker(self.random)
        if worker is not None:
            self.cast.hit("drain", worker, signal.SIGTERM)

    async def kill_gateway(self) -> None:
        if self.cast.gateway is not None and self.cast.gateway.poll() is None:
            self.cast.hit("gateway", self.cast.gateway, signal.SIGKILL)

    async def kill_valkey(self) -> None:
        self.redis_faults += 1
        await self.cast.restart_valkey()

    async def pause_valkey(self) -> None:
        self.redis_faults += 1
        self.cast.kills["pause"] = self.cast.kills.get("pause", 0) + 1
        await self.queue.redis.execute_command("CLIENT", "PAUSE", self.random.randrange(300, 1500), "ALL")

    async def _held(self, worker: Popen[bytes]) -> dict[str, str]:
        """Jobs under lease by this process, with the token of their lease."""
        held = {}
        for job_id in await self.queue.redis.zrange(self.queue.keys.leases_zset(MODEL), 0, -1):
            owner, token = await self.queue.redis.hmget(self.queue.keys.job_hash(job_id), "worker", "token")
            if owner and f"-{worker.pid}-" in owner:
                held[job_id] = token
        return held

    async def _watch(self, held: dict[str, str], began: float, redis_faults: int) -> None:
        """Time from the kill until each job is under another lease or has ended. Not counted where Valkey was away
        meanwhile: nobody could have taken the job."""
        while held and redis_faults == self.redis_faults:
            await asyncio.sleep(0.02)
            for job_id, token in list(held.items()):
                try:
                    now, state = await self.queue.redis.hmget(self.queue.keys.job_hash(job_id), "token", "state")
                except redis.exceptions.RedisError:
                    return
                if now != token or state not in ("starting", "processing"):
                    del held[job_id]
                    if redis_faults == self.redis_faults:
                        self.redelivery_s.append(time.monotonic() - began)
