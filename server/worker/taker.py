"""Takes jobs from the queue for a worker: as many as it has room for, and those that may preempt a row."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from redis.exceptions import RedisError

from server.background import RepeatedFailure, wait_at_most
from server.errors import EngineBroken
from server.queue.lease_queue import LeaseQueue, Preempting
from server.worker.engine.slot import EngineSlot
from server.worker.intake import Intake
from server.worker.scheduling.preemption import PreemptionPolicy
from server.worker.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)
IDLE_BLOCK_S = 0.25  # longest wait without noticing SIGTERM or expired leases while there is nothing to do
MIN_WAIT_S = 0.25  # a job that has waited this long is one that no idle worker wants
#: An idle worker takes a job within less, and nothing need be preempted for it. A row becomes free between two steps
#: only, so that a worker whose steps are longer asks twice in each.
PREEMPT_S = 0.03
RECLAIM_S = 0.25
STOP_S = 1.0


class Taker:
    """Takes jobs from the queue while there is room for them, beside the worker's loop."""

    def __init__(
        self,
        worker_id: str,
        queue: LeaseQueue,
        engine: EngineSlot,
        scheduler: Scheduler,
        intake: Intake,
        preemption: PreemptionPolicy,
        may_take: Callable[[], bool],
    ) -> None:
        self.in_flight = False  #: a job may be on its way here
        self._stopped = False
        self.room = asyncio.Event()  #: set by the worker's loop when there may be room again
        self._id = worker_id
        self._queue = queue
        self._engine = engine
        self._scheduler = scheduler
        self._intake = intake
        self._preemption = preemption
        self._may_take = may_take
        self._reclaim_at = self._preempt_at = 0.0

    async def run(self) -> None:
        """Take jobs until canceled, through every failure of Redis."""
        failure = RepeatedFailure(log)
        while True:
            try:
                if not await self.take():
                    await wait_at_most(self.room, MIN_WAIT_S)
                failure.over()
            except RedisError as error:
                failure.warn(f"cannot take jobs: Redis: {error}; trying again")
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Take no more jobs, and return once none is on its way, or after STOP_S."""
        self._stopped = True
        deadline = time.monotonic() + STOP_S
        while self.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def take(self) -> bool:
        """Lease a job if there is room for one, and wait IDLE_BLOCK_S for it. False: there is no room."""
        if self._stopped or not self._may_take():
            return False
        self.in_flight = True
        try:
            if self._scheduler.room() > 0:
                await self._reclaim()
                if self._scheduler.room() > 0:
                    await self._accept(block_s=IDLE_BLOCK_S, min_wait_s=0.0)
                return True
            if self._scheduler.saturated() and await self._accept(block_s=None, min_wait_s=MIN_WAIT_S):
                return True
            return await self._take_preempting()
        except EngineBroken as error:
            self._intake.failures.append(error)
            return False
        finally:
            self.in_flight = False

    async def _take_preempting(self) -> bool:
        """Lease a job that a row may be paused for, if there is one."""
        now = time.monotonic()
        if now < self._preempt_at or not (preempting := self._preemption.takeable(now)):
            return False
        if await self._accept(None, PREEMPT_S, preempting):
            return True
        self._preempt_at = now + max(PREEMPT_S, self._engine.thread.table.step_s / 2)
        return False

    async def _accept(
        self, block_s: float | None, min_wait_s: float, preempting: Mapping[str, Preempting] | None = None
    ) -> bool:
        lease = await self._queue.take(
            self._id, self._engine.info.id, block_s=block_s, min_wait_s=min_wait_s, preempting=preempting
        )
        if lease is not None:
            await self._intake.accept_lease(lease)
        return lease is not None

    async def _reclaim(self) -> None:
        """Take over expired leases, one at a time: a job of many images, or a suspect, may leave no room for more."""
        while self._scheduler.room() > 0 and time.monotonic() >= self._reclaim_at:
            held = [job.lease.job_id for job in self._scheduler.jobs.values() if not job.lost]
            leases = await self._queue.reclaim(self._id, self._engine.info.id, held, count=1)
            if not leases:
                self._reclaim_at = time.monotonic() + RECLAIM_S
            for lease in leases:
                await self._intake.accept_lease(lease)
