"""Turns a lease into a held job, and the images of held jobs into rows."""

import logging
import time
import zlib
from collections.abc import Sequence

from server.images.compositing import Source
from server.jobs import JobState, Lease
from server.metrics import Tally
from server.queue import source_images
from server.queue.lease_queue import LeaseQueue
from server.worker.completion import Completion
from server.worker.engine.slot import EngineSlot
from server.worker.held_job import HeldJob
from server.worker.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
Images = Sequence[tuple[HeldJob, int]]


class Intake:
    """The way into the batch: lease -> held job -> row."""

    def __init__(
        self,
        queue: LeaseQueue,
        engine: EngineSlot,
        scheduler: Scheduler,
        completion: Completion,
        snapshots: SnapshotStore,
        tally: Tally,
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._scheduler = scheduler
        self._completion = completion
        self._snapshots = snapshots
        self._tally = tally

    async def accept_lease(self, lease: Lease) -> None:
        """Hold the job, with its source image and the progress of an earlier attempt."""
        job = self._scheduler.add(lease, time.monotonic())
        self._tally.observe("fluid_queue_wait_seconds", lease.started_at - lease.created_at)
        if lease.input.edit is not None and not await self._load_source(job):
            return
        await self._completion.persist(lambda: self._snapshots.load(job))
        if job.complete:  # the earlier attempt was lost between its last image and its terminal state
            await self._completion.finish(job, JobState.SUCCEEDED)

    async def _load_source(self, job: HeldJob) -> bool:
        """Load the image that an edit starts from. False: the job was rejected, because no attempt would find one."""
        data = await self._completion.persist(lambda: source_images.load(self._queue, job.lease.input))
        try:
            if data is None:
                raise ValueError("the source image is gone; send the request again")
            job.source = Source.unpack(data, job.lease.input, self._engine.info)
        except (ValueError, zlib.error) as error:
            await self._completion.reject(job, str(error))
            return False
        return True

    async def admit(self, images: Images) -> None:
        """Give each image a row: resumed from its snapshot if there is one, else from its first step."""
        fresh = [(job, index) for job, index in images if not await self._resumed(job, index)]
        fresh = [(job, index) for job, index in fresh if not job.closing]
        if fresh:
            await self._admit_fresh(fresh)

    async def _resumed(self, job: HeldJob, index: int) -> bool:
        """Put an image on a row where its snapshot was taken. False: it has to start from its first step."""
        if index not in job.snapshots or job.closing:
            return False
        state = job.snapshots.pop(index)
        try:
            row, done, job.prompt_tokens = await self._engine.thread.restore(job.request(index), state)
        except ValueError as error:
            log.warning("a snapshot of %s does not fit, the image starts over: %s", job.lease.job_id, error)
            return False
        except Exception as error:
            log.exception("the engine failed to restore an image of %s", job.lease.job_id)
            await self._completion.isolate_failure("restore", error, [job], 1)
            return True
        self._scheduler.assign_row(job, index, row)
        job.steps_done[index] = done
        self._tally.count("fluid_resumed_rows_total")
        return True

    async def _admit_fresh(self, images: Images) -> None:
        jobs = list(dict.fromkeys(job for job, _ in images))
        began = time.monotonic()
        try:
            rows = await self._engine.thread.admit([job.request(index) for job, index in images])
        except ValueError as error:
            if len(jobs) == 1:
                await self._completion.reject(jobs[0], str(error))
                return
            for job in jobs:  # one of them is impossible: admitting them one by one shows which
                await self._admit_fresh([image for image in images if image[0] is job])
        except Exception as error:
            log.exception("the engine failed to admit %d images", len(images))
            await self._completion.isolate_failure("admit", error, jobs, len(images))
        else:
            self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "admit")
            for (job, index), (row, job.prompt_tokens) in zip(images, rows, strict=True):
                self._scheduler.assign_row(job, index, row)
