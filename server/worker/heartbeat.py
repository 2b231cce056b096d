"""Beside the worker's loop: the heartbeat that says who we are, and the pulse that keeps our leases."""

import asyncio
import logging
import time

from redis.exceptions import RedisError

from server.metrics import Tally
from server.model_info import ModelInfo
from server.queue.registry import HEARTBEAT_S, Registry, WorkerInfo
from server.worker.scheduler import Scheduler

log = logging.getLogger(__name__)
SPEED_MEMORY_S = 10.0


class Throughput:
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
        self.speed = Throughput()
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
            await self._registry.heartbeat(me, stats)
        except RedisError:
            self._tally.restore(stats)
            raise

    async def forever(self) -> None:
        while True:
            try:
                await self.once()
                if self.model is not None and not await self._registry.has_model(self.model.id):
                    await self._registry.publish_model(self.model)  # Redis has come back without its data
            except RedisError as error:
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_S)
