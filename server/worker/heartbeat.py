"""Beside the worker's loop: the heartbeat that says who we are, and the pulse that keeps our leases."""

import asyncio
import logging
import time

from redis.exceptions import RedisError

from server.jobs import ModelInfo, WorkerInfo
from server.metrics import Tally
from server.queue.job_queue import Pulse, Queue
from server.queue.registry import BEAT_S, Registry
from server.worker.scheduler import Scheduler

log = logging.getLogger(__name__)
SPEED_MEMORY_S = 10.0
PULSE_S = 0.1
LISTEN_S = 1.0


class Speed:
    """Row-steps per second while the engine is busy: what waiting times are estimated from."""

    def __init__(self) -> None:
        self._work, self._seconds = 0.0, 0.0

    def saw(self, row_steps: int, seconds: float) -> None:
        """What was just done. Older ones count less and less, the last SPEED_MEMORY_S of them about half of all."""
        keep = 0.5 ** (seconds / SPEED_MEMORY_S)
        self._work, self._seconds = self._work * keep + row_steps, self._seconds * keep + seconds

    @property
    def row_steps_per_s(self) -> float:
        return self._work / self._seconds if self._seconds else 0.0


class Heartbeat:
    """Tells the registry how this worker is, and what it counted since the last beat."""

    def __init__(self, worker_id: str, registry: Registry, held: Scheduler, tally: Tally) -> None:
        self.state, self.note = "loading", ""
        self.speed = Speed()
        self.reloads = 0
        self.model: ModelInfo | None = None
        self.kernels = self.device = ""
        self._id = worker_id
        self._registry = registry
        self._held = held
        self._tally = tally
        self._started_at = time.time()

    async def once(self) -> None:
        me = WorkerInfo(
            id=self._id,
            state=self.state,
            model=self.model.id if self.model else "",
            max_rows=self._held.max_rows,
            rows=len(self._held.rows),
            started_at=self._started_at,
            note=self.note,
            checkpoint=self.model.checkpoint_sha256 if self.model else "",
            row_steps_per_s=round(self.speed.row_steps_per_s, 3),
            work_left=self._held.work_left,
            kernels=self.kernels,
            device=self.device,
            reloads=self.reloads,
        )
        stats = self._tally.drain()
        try:
            await self._registry.beat(me, stats)
        except RedisError:
            self._tally.restore(stats)
            raise

    async def forever(self) -> None:
        while True:
            try:
                await self.once()
                if self.model is not None and not await self._registry.knows(self.model.id):
                    await self._registry.publish_model(self.model)  # Redis has come back without its data
            except RedisError as error:
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(BEAT_S)


class LeasePulse:
    """Renews leases and reports progress; what the queue answers becomes flags that the loop reads."""

    def __init__(self, queue: Queue, held: Scheduler, lease_s: float) -> None:
        self._queue = queue
        self._held = held
        self._renew_every = lease_s / 3

    async def forever(self) -> None:
        renew_at = time.monotonic() + self._renew_every
        while True:
            await asyncio.sleep(PULSE_S)
            renew = time.monotonic() >= renew_at
            try:
                await self.once(renew=renew)
            except RedisError as error:
                log.warning("cannot renew the leases of %d jobs: %s", len(self._held.works), error)
                continue
            if renew:
                renew_at = time.monotonic() + self._renew_every

    async def once(self, *, renew: bool) -> None:
        works = [w for w in self._held.works.values() if not (w.closing or w.lost)]
        pulses = [Pulse(w.lease, w.started, sum(w.steps_done.values())) for w in works]
        answers = await self._queue.pulse(pulses, renew=renew)
        for work, answer in zip(works, answers, strict=True):
            # A job whose end was written while the pulse was under way is over, not lost.
            work.lost |= answer == "lost" and not work.closing
            work.canceled |= answer == "cancel"


class CancelListener:
    """Frees rows within one step of the cancel. The pulse reads the same flags, should a message be lost."""

    def __init__(self, queue: Queue, held: Scheduler) -> None:
        self._queue = queue
        self._held = held

    async def forever(self) -> None:
        while True:
            try:
                async with self._queue.redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._queue.keys.cancels_channel)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                        work = self._held.works.get(message["data"]) if message else None
                        if work is not None:
                            work.canceled = True
            except RedisError as error:
                log.warning("lost the subscription to cancellations (%s); the pulse reads them", error)
                await asyncio.sleep(LISTEN_S)
