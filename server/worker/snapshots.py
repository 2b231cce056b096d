"""Saves the progress of held jobs in Redis, beside the worker's loop: a crash costs a few steps, not an image."""

import asyncio
import logging
from collections.abc import Mapping

from redis.exceptions import RedisError

from server.jobs import Output
from server.metrics import Tally
from server.queue.lease_queue import LeaseQueue
from server.worker.engine.slot import EngineSlot
from server.worker.scheduling.held_job import HeldJob

log = logging.getLogger(__name__)


class SnapshotStore:
    """Saves and loads progress, best effort: a snapshot that could not be saved costs steps, never an image.

    Snapshots are saved under the checkpoint's SHA-256; those of other weights are not loaded.
    """

    def __init__(self, queue: LeaseQueue, engine: EngineSlot, tally: Tally) -> None:
        self._queue = queue
        self._engine = engine
        self._tally = tally
        self._saving: dict[str, asyncio.Task[None]] = {}

    async def load(self, job: HeldJob) -> None:
        """Load what an earlier attempt saved, on this worker or another."""
        found = await self._queue.resume(job.lease, self._engine.info.checkpoint_sha256)
        steps = job.lease.input.sampling.num_inference_steps
        for index, output in found.outputs.items():
            if index not in job.waiting:  # no image of this job
                continue
            job.outputs[index] = output
            job.waiting.remove(index)
            job.steps_done[index] = steps
        job.snapshots = dict(found.snapshots)
        log.info("resuming %s: %d done, %d half done", job.lease.job_id, len(found.outputs), len(found.snapshots))

    def save(self, rows: Mapping[int, HeldJob], snapshots: Mapping[int, bytes]) -> None:
        """Save a step's snapshots in the background. A job whose last save is still under way is skipped: its next
        snapshot follows soon."""
        fresh: dict[HeldJob, dict[int, bytes]] = {}
        for row, state in snapshots.items():
            job = rows[row]
            job.snapshots[job.rows[row]] = state
            fresh.setdefault(job, {})[job.rows[row]] = state
        for job, states in fresh.items():
            self._save_soon(job, states)

    def keep(self, job: HeldJob, index: int, state: bytes) -> None:
        """Keep the snapshot that a preempted image resumes from, here and for another attempt."""
        job.snapshots[index] = state
        self._save_soon(job, {index: state})

    def _save_soon(self, job: HeldJob, states: Mapping[int, bytes]) -> None:
        if job.lease.job_id not in self._saving:
            self._saving[job.lease.job_id] = asyncio.create_task(self._save_in_background(job, states))

    async def flush(self, job: HeldJob) -> None:
        """Take and save snapshots of all rows of a job that is about to be requeued."""
        rows = dict(job.rows)  # one may be paused meanwhile
        try:
            states = await self._engine.thread.snapshot(rows)
        except Exception:  # the engine is on its way out; the last snapshots are still there
            log.exception("no last snapshots of %s", job.lease.job_id)
            return
        job.snapshots |= {rows[row]: state for row, state in states.items()}
        if job.snapshots:
            await self._write(job, job.snapshots)

    async def save_output(self, job: HeldJob, output: Output) -> None:
        """Save a finished image of a job that has others to generate."""
        job.snapshots.pop(output.index, None)
        await self._write(job, {}, output)

    async def _save_in_background(self, job: HeldJob, states: Mapping[int, bytes]) -> None:
        try:
            await self._write(job, states)
        finally:
            del self._saving[job.lease.job_id]

    async def _write(self, job: HeldJob, states: Mapping[int, bytes], *outputs: Output) -> None:
        checkpoint = self._engine.info.checkpoint_sha256
        try:
            await self._queue.save(job.lease, checkpoint, snapshots=states, outputs=outputs)
        except RedisError as error:
            log.warning("cannot save the progress of %s: %s", job.lease.job_id, error)
        else:
            self._tally.count("fluid_snapshots_total", by=len(states))
