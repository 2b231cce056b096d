"""The worker's heartbeat: its state, speed and counters, reported to the registry."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from server.metrics import Tally
from server.queue.registry import HEARTBEAT_S, Registry, WorkerInfo
from server.worker.engine.slot import EngineSlot
from server.worker.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)
HALF_LIFE_S = 10.0


async def _no() -> bool:
    return False


class Throughput:
    """Row-steps per second while the engine is busy, from which waiting times are estimated."""

    def __init__(self) -> None:
        self._row_steps, self._seconds = 0.0, 0.0

    def record(self, row_steps: int, seconds: float) -> None:
        """Add a measurement to the exponential average, in which the last HALF_LIFE_S weigh about half."""
        decay = 0.5 ** (seconds / HALF_LIFE_S)
        self._row_steps, self._seconds = self._row_steps * decay + row_steps, self._seconds * decay + seconds

    @property
    def row_steps_per_s(self) -> float:
        return self._row_steps / self._seconds if self._seconds else 0.0


class Heartbeat:
    """Reports this worker's state, and its counts since the last heartbeat, to the registry."""

    def __init__(
        self, worker_id: str, registry: Registry, engine: EngineSlot, scheduler: Scheduler, tally: Tally
    ) -> None:
        self.state, self.note = "loading", ""
        #: A state to report instead of "ready", and why.
        self.impaired: Callable[[], tuple[str, str] | None] = lambda: None
        self.advice: Callable[[], str] = lambda: ""  #: what to report of a sound worker where there is no note
        self.reload_pending: Callable[[], Awaitable[bool]] = _no
        self.conflict = ""  #: why this worker's checkpoint may not serve its model's id; "" if it may
        self._claimed = ""  # id that this process has published last
        self.throughput = Throughput()
        self.reloads, self.configured = 0, ""
        self._id = worker_id
        self._registry = registry
        self._engine = engine
        self._scheduler = scheduler
        self._tally = tally
        self._started_at = time.time()

    def preparing(self, done: int, total: int) -> None:
        """Report the progress of the first engine's warm-up; that of a reload runs beside the one that serves."""
        if self.state == "loading":
            self.note = f"preparing its kernels: {done} of {total} shapes"

    async def beat(self) -> None:
        """Report once. Raises RedisError; the counters are then reported by the next heartbeat."""
        worker = self._describe()
        stats, exemplars = self._tally.drain(), self._tally.drain_exemplars()
        try:
            await self._registry.heartbeat(worker, stats, exemplars)
        except RedisError:
            self._tally.restore(stats, exemplars)
            raise

    async def claim(self) -> None:
        """Publish the model, unless its id belongs to another checkpoint: callers get one image for one seed."""
        info = self._engine.info
        rival = await self._registry.rival(self._id, info)
        if rival is None:
            published = await self._registry.published(info.id)
            same = published is not None and published.checkpoint_sha256 == info.checkpoint_sha256
            if not same or self._claimed != info.id:
                await self._registry.publish_model(info)  # also after Redis has restarted without its data
                self._claimed = info.id
        conflict = ""
        if rival is not None and not await self.reload_pending():
            conflict = (
                f"it loaded checkpoint {info.checkpoint_sha256[:12]}, but worker {rival.id} serves {info.id} with "
                f"{rival.checkpoint[:12]}; it takes no jobs until that worker is gone: "
                "use one checkpoint, or `fluid reload`"
            )
        if conflict != self.conflict:
            log.error("%s", conflict or f"the only checkpoint of {info.id} again; taking jobs")
        self.conflict = conflict

    def _describe(self) -> WorkerInfo:
        info = self._engine.info if self._engine.installed else None
        state, note = self.state, self.note
        if state == "ready" and (impaired := self.impaired()) is not None:
            state, note = impaired
        note = note or self.advice()
        return WorkerInfo(
            id=self._id,
            state=state,
            model=info.id if info else "",
            max_rows=self._scheduler.max_rows,
            rows=len(self._scheduler.rows),
            started_at=self._started_at,
            note=note,
            checkpoint=info.checkpoint_sha256 if info else "",
            row_steps_per_s=round(self.throughput.row_steps_per_s, 3),
            work_left=self._scheduler.work_left,
            kernels=self._engine.thread.kernels if info else "",
            device=self._engine.thread.device if info else "",
            reloads=self.reloads,
            configured=self.configured,
        )

    async def run(self) -> None:
        """Send heartbeats until canceled."""
        while True:
            try:
                await self.beat()
                if self._engine.installed:
                    await self.claim()
            except RedisError as error:
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(HEARTBEAT_S)
