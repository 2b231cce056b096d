"""Fault injection: random faults at random intervals, several at a time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from random import Random

from redis.exceptions import RedisError

from benchmarks.chaos.cast import Cast
from benchmarks.chaos.redelivery import Redeliveries
from server.queue.job_queue import JobQueue


class Faults:
    """Kills, freezes, drains and pauses processes; a freeze or an outage continues while the next faults start."""

    def __init__(self, cast: Cast, queue: JobQueue, redeliveries: Redeliveries, random: Random) -> None:
        self._cast, self._queue, self._redeliveries, self._random = cast, queue, redeliveries, random
        self._valkey = asyncio.Lock()  # one outage at a time
        self._in_progress: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Inject faults until `stop` is set, then wait for those in progress."""
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._kill_worker: 30, self._freeze_worker: 20, self._drain_worker: 10, self._kill_gateway: 20,
            self._kill_valkey: 8, self._pause_valkey: 12,
        }  # fmt: skip
        while not stop.is_set():
            await asyncio.sleep(self._random.uniform(0.5, 2.5))
            fault = self._random.choices(list(kinds), list(kinds.values()))[0]
            task = asyncio.ensure_future(fault())
            self._in_progress.add(task)
            task.add_done_callback(self._in_progress.discard)
        await asyncio.gather(*self._in_progress)

    async def _kill_worker(self) -> None:
        if live := self._cast.live_workers():
            worker = self._random.choice(live)
            self._cast.strike("worker", worker, signal.SIGKILL)
            await self._redeliveries.watch(worker)

    async def _freeze_worker(self) -> None:
        """Freeze a worker for longer than its lease, then wake it: it still believes that it holds its jobs."""
        if not (live := self._cast.live_workers()):
            return
        worker = self._random.choice(live)
        self._cast.frozen.add(worker.pid)
        self._cast.strike("zombie", worker, signal.SIGSTOP)
        await self._redeliveries.watch(worker)
        await asyncio.sleep(self._cast.lease_s + self._random.uniform(0.1, 1.5))
        worker.send_signal(signal.SIGCONT)
        self._cast.frozen.discard(worker.pid)

    async def _drain_worker(self) -> None:
        if live := self._cast.live_workers():
            self._cast.strike("drain", self._random.choice(live), signal.SIGTERM)

    async def _kill_gateway(self) -> None:
        self._cast.strike("gateway", self._random.choice(list(self._cast.gateways.values())), signal.SIGKILL)

    async def _kill_valkey(self) -> None:
        async with self._valkey, self._redeliveries.outage():
            await self._cast.restart_valkey(self._random.uniform(0.1, 2.5))

    async def _pause_valkey(self) -> None:
        """Make Valkey stop answering while its connections stay open."""
        async with self._valkey, self._redeliveries.outage():
            pause_s = self._random.uniform(0.2, 2.5)
            try:
                await self._queue.redis.execute_command("CLIENT", "PAUSE", round(pause_s * 1000), "ALL")
            except RedisError:
                return  # still down from the previous fault
            self._cast.kills["pause"] += 1
            await asyncio.sleep(pause_s)
