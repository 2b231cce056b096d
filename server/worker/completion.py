"""How a job leaves its worker: finished, failed, or requeued."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from redis.exceptions import RedisError

from server.jobs import IMPOSSIBLE, JobError, JobMetrics, JobState
from server.metrics import Tally
from server.queue.connection.retry import through_outages
from server.queue.lease_queue import LeaseQueue
from server.telemetry.tracing import Tracing
from server.worker.engine.slot import EngineSlot
from server.worker.results import RETRY_S, ResultWriter
from server.worker.scheduling.held_job import HeldJob
from server.worker.scheduling.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
T = TypeVar("T")


class Completion:
    """Every way for a job to leave the batch; each frees its rows, tells the queue, and forgets the job."""

    def __init__(
        self,
        queue: LeaseQueue,
        engine: EngineSlot,
        scheduler: Scheduler,
        snapshots: SnapshotStore,
        results: ResultWriter,
        tally: Tally,
        lease_s: float,
        tracing: Tracing,
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._scheduler = scheduler
        self._snapshots = snapshots
        self._results = results
        self._tally = tally
        self._lease_s = lease_s
        self._tracing = tracing

    async def finish(
        self, job: HeldJob, state: JobState, error: JobError | None = None, files: Mapping[int, bytes] | None = None
    ) -> None:
        """Write the job's terminal state. `files` are images that are not stored yet, by image index."""
        job.closing, began = True, time.monotonic()
        ended: JobState | None = None
        lease, metrics = job.lease, _metrics(job, self._engine.thread.kernels)
        checkpoint = self._engine.info.checkpoint_sha256
        outputs = [job.outputs[i] for i in sorted(job.outputs)] if state is JobState.SUCCEEDED else []
        try:
            ended = await self.persist(
                lambda: self._queue.finish(
                    lease, state, outputs=outputs, error=error, metrics=metrics, files=files, checkpoint=checkpoint
                )
            )
        except RedisError as failure:
            log.error("cannot finish %s (%s); another worker will attempt it", lease.job_id, failure)
        else:
            if ended is JobState.SUCCEEDED:
                seconds, trace_id = metrics.total_time, job.trace.trace_id
                self._tally.observe("fluid_job_latency_seconds", seconds, lease.input.model, trace_id=trace_id)
            elif ended is not None:
                self._results.discard(job)
            log.info(
                "%s %s in %.3f s%s", lease.job_id, ended or state, metrics.total_time, "" if ended else " (fenced)"
            )
        job.trace.add("finish", began)
        self._remove(job, ended or "fenced", error.code if error else "")

    async def requeue(self, job: HeldJob, error: JobError | None, *, discard_progress: bool = False) -> None:
        """Return the job to the queue. An error counts the attempt.

        `discard_progress`: the next attempt must not resume from what this one saved.
        """
        job.closing = True
        try:
            state = await self.persist(
                lambda: self._queue.requeue(job.lease, error=error, discard_progress=discard_progress)
            )
            if state in (JobState.FAILED, JobState.CANCELED) or (discard_progress and state != "fenced"):
                self._results.discard(job)
            log.info("requeued %s, now %s", job.lease.job_id, state)
        except RedisError as failure:
            log.error("cannot requeue %s (%s); its lease will expire", job.lease.job_id, failure)
        self._remove(job, "requeued", error.code if error else "")

    async def requeue_after_outage(self, job: HeldJob) -> None:
        """Requeue a job whose source image the store did not give, after a pause; no attempt counts."""
        await asyncio.sleep(RETRY_S)
        if not job.leaving:
            await self.requeue(job, None)

    async def requeue_all(self, error: JobError | None) -> None:
        """Requeue every held job. With an error the engine can no longer free rows, and only started jobs count the
        attempt."""
        for job in list(self._scheduler.jobs.values()):
            if job.closing:
                continue
            if error is None:
                await self._snapshots.flush(job)
                await self.release_rows(job)
            await self.requeue(job, error if job.started else None)

    async def isolate_failure(self, stage: str, error: Exception, jobs: list[HeldJob], images: int) -> None:
        """Bisect a failed call until one image of one job is to blame, and requeue that job with the error.

        Several jobs in the call: each half runs by itself next. Several images of one job: half as many run together.
        So k guilty images among n are found in about k log2 n further failures; the others resume from their snapshots.
        """
        self._tally.count("fluid_engine_failures_total", stage)
        for job in jobs:
            await self.release_rows(job)
        if len(jobs) > 1:
            self._scheduler.split(jobs)
        elif images > 1:
            self._scheduler.limit_rows(jobs[0], images // 2)
        else:
            failure = JobError("engine_error", f"{type(error).__name__}: {error}")
            await self.requeue(jobs[0], failure, discard_progress=True)

    async def reject(self, job: HeldJob, reason: str) -> None:
        """Fail a job whose request itself is at fault; further attempts would end the same way."""
        await self.release_rows(job)  # earlier images of it may have been admitted
        await self.finish(job, JobState.FAILED, JobError(IMPOSSIBLE, reason))

    async def reap(self) -> None:
        """Remove jobs that ended while a step ran: lost, canceled, or whose file could not be written."""
        for job in list(self._scheduler.jobs.values()):
            if job.closing or not (job.lost or job.canceled or job.failure or job.interrupted):
                continue
            if job.interrupted and not (job.lost or job.canceled):
                await self._snapshots.flush(job)
            await self.release_rows(job)
            if job.lost:
                self._tally.count("fluid_lease_lost_total")
                log.warning("lost the lease of %s (attempt %d)", job.lease.job_id, job.lease.attempt)
                self._remove(job, "lost")
            elif job.canceled:
                await self.finish(job, JobState.CANCELED)
            else:
                await self.requeue(job, job.failure)

    async def release_rows(self, job: HeldJob) -> None:
        """Free the job's rows; their images wait again from step 0, or from their snapshots."""
        rows = list(job.rows)
        for row in rows:
            self._scheduler.free_row(job, row, retry=True)
        await self._engine.thread.release(rows)

    def _remove(self, job: HeldJob, outcome: str, error: str = "") -> None:
        self._scheduler.remove(job)
        job.trace.export(
            self._tracing, outcome, error=error, prompt_tokens=job.prompt_tokens, kernels=self._engine.thread.kernels
        )

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat an unanswered write while our lease may be valid. Every write here is idempotent."""
        return await through_outages(write, time.monotonic() + self._lease_s, 0.2)


def _metrics(job: HeldJob, kernels: str) -> JobMetrics:
    queue_s = job.lease.queue_s
    return JobMetrics(
        queue_time=round(queue_s, 6),
        predict_time=round(job.predict_s, 6),
        encode_time=round(job.encode_s, 6),
        total_time=round(queue_s + time.monotonic() - job.taken_at, 6),
        batch_size=job.batch_peak,
        prompt_tokens=job.prompt_tokens,
        kernels=kernels,
    )
