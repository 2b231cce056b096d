"""What is done of a job, kept in Redis beside the worker's loop: a crash costs a few steps, not a picture."""

import asyncio
import logging
from collections.abc import Mapping

from redis.exceptions import RedisError

from server.jobs import Output
from server.metrics import Tally
from server.queue.lease_queue import LeaseQueue
from server.worker.engine.thread import EngineThread
from server.worker.held_job import HeldJob

log = logging.getLogger(__name__)


class SnapshotStore:
    """Best effort: a snapshot that could not be kept costs steps, never a picture."""

    def __init__(self, queue: LeaseQueue, thread: EngineThread, tally: Tally) -> None:
        self.checkpoint = ""  #: SHA-256 of the weights that draw; others' snapshots are not ours
        self.thread = thread
        self._queue = queue
        self._tally = tally
        self._saving: dict[str, asyncio.Task[None]] = {}

    async def recall(self, work: HeldJob) -> None:
        """Go on where an earlier try of the job was, on whatever worker."""
        if not work.lease.resumable:
            return
        found = await self._queue.resume(work.lease, self.checkpoint)
        steps = work.lease.input.sampling.num_inference_steps
        for index, output in found.outputs.items():
            work.outputs[index] = output
            work.waiting.remove(index)
            work.steps_done[index] = steps
        work.snapshots = dict(found.snapshots)
        log.info("%s goes on: %d done, %d half done", work.lease.job_id, len(found.outputs), len(found.snapshots))

    def keep(self, rows: Mapping[int, HeldJob], snapshots: Mapping[int, bytes]) -> None:
        """After a step. A job whose last save is still under way is left out: the next one is not far."""
        fresh: dict[HeldJob, dict[int, bytes]] = {}
        for row, state in snapshots.items():
            work = rows[row]
            work.snapshots[work.rows[row]] = state
            fresh.setdefault(work, {})[work.rows[row]] = state
        for work, states in fresh.items():
            if work.lease.job_id not in self._saving:
                self._saving[work.lease.job_id] = asyncio.create_task(self._save_beside(work, states))

    async def keep_now(self, work: HeldJob) -> None:
        """All rows of a job that is about to be given back."""
        try:
            states = await self.thread.snapshot(work.rows)
        except Exception:  # of an engine on its way out; the last snapshots are still there
            log.exception("no last snapshots of %s", work.lease.job_id)
            return
        work.snapshots |= {work.rows[row]: state for row, state in states.items()}
        if work.snapshots:
            await self._save(work, work.snapshots)

    async def keep_output(self, work: HeldJob, output: Output) -> None:
        """A finished image of a job that has others to draw."""
        work.snapshots.pop(output.index, None)
        await self._save(work, {}, output)

    async def _save_beside(self, work: HeldJob, states: Mapping[int, bytes]) -> None:
        try:
            await self._save(work, states)
        finally:
            del self._saving[work.lease.job_id]

    async def _save(self, work: HeldJob, states: Mapping[int, bytes], *outputs: Output) -> None:
        try:
            await self._queue.save(work.lease, self.checkpoint, snapshots=states, outputs=outputs)
        except RedisError as error:
            log.warning("cannot keep what is done of %s: %s", work.lease.job_id, error)
        else:
            self._tally.count("fluid_snapshots_total", by=len(states))
