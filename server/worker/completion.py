"""How a job leaves its worker: finished, failed, or given back to the queue."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from redis.exceptions import RedisError

from server.jobs import IMPOSSIBLE, JobError, JobMetrics, JobState
from server.metrics import Tally
from server.queue.lease_queue import LeaseQueue
from server.worker.engine.thread import EngineThread
from server.worker.held_job import HeldJob
from server.worker.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
T = TypeVar("T")


class Completion:
    """Every way out of the batch; each frees the rows, tells the queue, and forgets the job."""

    def __init__(
        self,
        queue: LeaseQueue,
        thread: EngineThread,
        held: Scheduler,
        keeper: SnapshotStore,
        tally: Tally,
        lease_s: float,
    ):
        self.thread = thread
        self._queue = queue
        self._keeper = keeper
        self._held = held
        self._tally = tally
        self._lease_s = lease_s

    async def finish(
        self, work: HeldJob, state: JobState, error: JobError | None = None, files: Mapping[int, bytes] | None = None
    ) -> None:
        """`files` are pictures that are not stored yet, by image index."""
        work.closing = True
        lease, metrics = work.lease, _metrics(work, self.thread.kernels)
        outputs = [work.outputs[i] for i in sorted(work.outputs)] if state is JobState.SUCCEEDED else []
        try:
            done = await self.persist(
                lambda: self._queue.finish(lease, state, outputs=outputs, error=error, metrics=metrics, files=files)
            )
        except RedisError as failure:
            log.error("cannot write the end of %s (%s); another worker will draw it", lease.job_id, failure)
        else:
            if state is JobState.SUCCEEDED and done:
                self._tally.observe("fluid_job_latency_seconds", metrics.total_time)
            log.info("%s %s in %.3f s%s", lease.job_id, state, metrics.total_time, "" if done else " (fenced)")
        self._held.remove(work)

    async def give_back(self, work: HeldJob, error: JobError | None, *, anew: bool = False) -> None:
        """`anew`: the next try must not go on from this one's snapshots."""
        work.closing = True
        try:
            state = await self.persist(lambda: self._queue.requeue(work.lease, error=error, discard_progress=anew))
            log.info("%s given back, now %s", work.lease.job_id, state)
        except RedisError as failure:
            log.error("cannot give %s back (%s); its lease will lapse", work.lease.job_id, failure)
        self._held.remove(work)

    async def give_everything_back(self, error: JobError | None) -> None:
        """With an error the engine is beyond saving and freeing rows, and only jobs that it had begun count the try."""
        for work in list(self._held.works.values()):
            if work.closing:
                continue
            if error is None:
                await self._keeper.keep_now(work)
                await self.free_rows(work)
            await self.give_back(work, error if work.started else None)

    async def engine_failed(self, stage: str, error: Exception, works: list[HeldJob], images: int) -> None:
        """Several jobs in the call that failed: each half is tried again by itself, here. Several images of one job:
        half as many of them together. One image: its job is guilty and goes back.

        So k guilty ones among n are found in about k log2 n further failures; the others go on from their snapshots.
        """
        self._tally.count("fluid_engine_failures_total", stage)
        for work in works:
            await self.free_rows(work)
        if len(works) > 1:
            self._held.split(works)
        elif images > 1:
            self._held.thin(works[0], images // 2)
        else:
            await self.give_back(works[0], JobError("engine_error", f"{type(error).__name__}: {error}"), anew=True)

    async def refuse(self, work: HeldJob, reason: str) -> None:
        """The request itself is at fault: other tries would end the same way, so it fails at once."""
        await self.free_rows(work)  # earlier images of it may have been admitted
        await self.finish(work, JobState.FAILED, JobError(IMPOSSIBLE, reason))

    async def drop_ended(self) -> None:
        """What happened to held jobs while a step ran: lost, canceled, or their file could not be written."""
        for work in list(self._held.works.values()):
            if work.closing or not (work.lost or work.canceled or work.failure):
                continue
            await self.free_rows(work)
            if work.lost:
                self._tally.count("fluid_lease_lost_total")
                log.warning("lost the lease of %s (attempt %d)", work.lease.job_id, work.lease.attempt)
                self._held.remove(work)
            elif work.canceled:
                await self.finish(work, JobState.CANCELED)
            else:
                await self.give_back(work, work.failure)

    async def free_rows(self, work: HeldJob) -> None:
        rows = list(work.rows)
        for row in rows:
            self._held.unseat(work, row, again=True)
        await self.thread.release(rows)

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat an unanswered write while our lease may live. Every write here is safe to repeat."""
        deadline = time.monotonic() + self._lease_s
        while True:
            try:
                return await write()
            except RedisError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)


def _metrics(work: HeldJob, kernels: str) -> JobMetrics:
    queue_s = work.lease.started_at - work.lease.created_at
    return JobMetrics(
        queue_time=round(queue_s, 6),
        predict_time=round(work.predict_s, 6),
        encode_time=round(work.encode_s, 6),
        total_time=round(queue_s + time.monotonic() - work.taken_at, 6),
        batch_size=work.batch_peak,
        prompt_tokens=work.prompt_tokens,
        kernels=kernels,
    )
