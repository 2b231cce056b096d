"""Fault injection: random faults at random intervals, several at a time.

Some are always there; the others are modes, which can be chosen:
failover   a replica that lacks the last second takes over the address; connections stay with the former primary
half-open  connections to Redis go silent and stay open
reload     `fluid reload` to a checkpoint that is missing, or that hangs
clock      the clocks of gateways, workers or Redis jump (that of Redis needs libfaketime)
disk       the disk under one Valkey is full (needs root, for a tmpfs)
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection
from random import Random

from redis.exceptions import RedisError

from benchmarks.chaos.cast import Cast
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.redelivery import Redeliveries
from server.queue.job_queue import JobQueue

#: Modes, and how often each is chosen; the faults that are always there add up to 100.
MODES = {"failover": 8, "half-open": 12, "reload": 6, "clock": 12, "disk": 6}
LAG_S = 1.0
JUMP_S = 40.0  # longer than a lease and than a heartbeat is valid


class Faults:
    """Kills, freezes, drains and pauses processes; a freeze or an outage continues while the next faults start."""

    def __init__(
        self,
        cast: Cast,
        queue: JobQueue,
        redeliveries: Redeliveries,
        ledger: Ledger,
        random: Random,
        modes: Collection[str] = (),
    ) -> None:
        self._cast, self._queue, self._redeliveries, self._random = cast, queue, redeliveries, random
        self._ledger = ledger
        self._modes = modes
        self._valkey = asyncio.Lock()  # one outage at a time
        self._in_progress: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Inject faults until `stop` is set, then wait for those in progress."""
        kinds: dict[Callable[[], Awaitable[None]], int] = {
            self._kill_worker: 30, self._freeze_worker: 20, self._drain_worker: 10, self._kill_gateway: 20,
            self._kill_valkey: 8, self._pause_valkey: 12,
        }  # fmt: skip
        extra = {
            "failover": self._fail_over, "half-open": self._go_silent, "reload": self._reload_badly,
            "clock": self._jump, "disk": self._fill_disk,
        }  # fmt: skip
        kinds |= {extra[mode]: MODES[mode] for mode in self._modes}
        first = [extra[mode] for mode in self._modes]  # a short run too has each of them
        while not stop.is_set():
            await asyncio.sleep(self._random.uniform(0.5, 2.5))
            fault = first.pop() if first else self._random.choices(list(kinds), list(kinds.values()))[0]
            task = asyncio.ensure_future(fault())
            self._in_progress.add(task)
            await self._raise_failures()
        await asyncio.gather(*self._in_progress)
        self._set_clocks_right()

    async def _raise_failures(self) -> None:
        """Forget the faults that are over; one that failed would prove nothing, so it ends the run."""
        for task in [task for task in self._in_progress if task.done()]:
            self._in_progress.discard(task)
            await task

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

    async def _fail_over(self) -> None:
        """Let the replica take over without the last second."""
        if (pair := self._cast.pair) is None:
            return
        async with self._valkey, self._redeliveries.outage():
            with self._ledger.rollback():  # from before the check: what was accepted earlier is on the replica
                try:
                    await asyncio.to_thread(pair.wait_until_synced)
                except TimeoutError:
                    return
                pair.lag()
                await asyncio.sleep(LAG_S)
                await asyncio.to_thread(pair.promote)
                self._cast.kills["failover"] += 1

    async def _go_silent(self) -> None:
        if self._cast.pair is not None:
            self._cast.kills["half-open"] += self._cast.pair.address.silence(
                self._random.uniform(0.2, 1.0), self._random
            )

    async def _reload_badly(self) -> None:
        command = self._cast.reload(self._random.choice(("missing", "missing", "hanging")))
        await asyncio.to_thread(command.wait)

    async def _jump(self) -> None:
        """Let the clocks of one role jump; the next jump of that role may set them back."""
        if self._cast.clocks is None:
            return
        role = self._random.choice(list(self._cast.clocks.offsets))
        self._cast.kills[f"clock of {role}"] += 1
        if role == "valkey":
            self._redeliveries.drop()
        self._cast.clocks.set(role, self._random.choice((-JUMP_S, 0.0, JUMP_S)))

    def _set_clocks_right(self) -> None:
        if self._cast.clocks is not None:
            self._redeliveries.drop()
            for role in self._cast.clocks.offsets:
                self._cast.clocks.set(role, 0.0)

    async def _fill_disk(self) -> None:
        async with self._valkey, self._redeliveries.outage():
            await self._cast.fill_disk(self._random.uniform(0.5, 2.5))
