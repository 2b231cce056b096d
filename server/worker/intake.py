"""The way into the batch: waiting job -> lease -> held job -> row. Steps of the engine wait for none of it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial

from server.errors import EngineBroken, StorageUnavailable
from server.images.compositing import Source
from server.jobs import JobState, Lease
from server.metrics import Tally
from server.queue import source_images
from server.queue.lease_queue import LeaseQueue
from server.worker.completion import Completion
from server.worker.engine.slot import EngineSlot
from server.worker.engine.thread import Admission, AdmittedRow
from server.worker.scheduling.held_job import HeldJob
from server.worker.scheduling.preemption import MAX_PAUSES, Preemption
from server.worker.scheduling.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
#: How a sentence about a worker ends.
NO_STORE = (
    "has no FLUID_RESULTS, and leaves edits whose source image lies there to workers that have it: set it as the "
    "gateways have it, and restart"
)
Images = Sequence[tuple[HeldJob, int]]
Admitted = Callable[[list[AdmittedRow]], None]


class Intake:
    """Turns a lease into a held job, and the images of held jobs into rows."""

    def __init__(
        self,
        queue: LeaseQueue,
        engine: EngineSlot,
        scheduler: Scheduler,
        completion: Completion,
        snapshots: SnapshotStore,
        tally: Tally,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when there is something for the worker's loop to do."""
        self.running: set[asyncio.Task[None]] = set()  #: admissions under way
        self.note = ""  #: what an operator should know of this worker
        self.failures: list[BaseException] = []  #: of admissions: what the worker's loop has to raise
        self._queue = queue
        self._engine = engine
        self._scheduler = scheduler
        self._completion = completion
        self._snapshots = snapshots
        self._tally = tally
        self._wake = wake

    async def accept_lease(self, lease: Lease) -> None:
        """Hold the job, with its source image and the progress of an earlier attempt."""
        job = self._scheduler.add(lease, time.monotonic())
        trace_id = job.trace.trace_id
        self._tally.observe("fluid_queue_wait_seconds", lease.queue_s, lease.input.model, trace_id=trace_id)
        job.preparing = True  # none of its images may start before what was saved of them is known
        try:
            if lease.input.edit is not None and not await self._load_source(job):
                return
            if lease.resumable:
                await self._completion.persist(lambda: self._snapshots.load(job))
            job.preparing = False
        except BaseException:  # what it starts from is not known, so none of its images may: it is requeued
            job.interrupted = True
            raise
        finally:
            self._wake()
        if (
            job.complete and not job.closing
        ):  # the earlier attempt was lost between its last image and its terminal state
            await self._completion.finish(job, JobState.SUCCEEDED)

    async def _load_source(self, job: HeldJob) -> bool:
        """Load the image that an edit starts from. False: the job was rejected, because no attempt would find one, or
        requeued, because the store does not respond: no attempt counts, and no job is taken before a probe succeeds."""
        try:
            data = await self._completion.persist(lambda: source_images.load(self._queue, job.lease.input))
        except StorageUnavailable as error:
            if self._queue.store is None:
                self._leave_stored(job)
            else:
                log.warning("%s is requeued: %s", job.lease.job_id, error.message)
            await self._completion.requeue_after_outage(job)
            return False
        try:
            if data is None:
                raise ValueError("the source image is gone; send the request again")
            job.source = Source.unpack(data, job.lease.input, self._engine.info)
        except ValueError as error:
            await self._completion.reject(job, str(error))
            return False
        return True

    def _leave_stored(self, job: HeldJob) -> None:
        """Take no more edits like this job, and say so once: each would be taken and requeued without end."""
        if not self._queue.leaves_stored:
            self._queue.leaves_stored, self.note = True, NO_STORE
            log.error("%s is requeued: this worker %s", job.lease.job_id, NO_STORE)

    def admit(self, images: Images) -> None:
        """Ask the engine for a row for each image: resumed from its snapshot if there is one, else from its first step.

        It gives them together, as soon as that many are free.
        """
        for job, index in images:
            self._scheduler.start_admission(job, index)
        self._run(self._admit(images))

    def preempt(self, chosen: Preemption) -> None:
        """Pause a row for an image. Its admission waits for a free row from now on, so that no other one gets it."""
        chosen.victim.pausing.add(chosen.row)
        self.admit([(chosen.job, chosen.index)])
        self._run(self._pause(chosen, chosen.victim.rows[chosen.row]))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)
        if self.failures or any(job.waiting for job in self._scheduler.jobs.values()):
            self._wake()

    async def _admit(self, images: Images) -> None:
        try:
            for job, index in images:
                if index in job.snapshots:
                    await self._resume(job, index)
            fresh = [(job, index) for job, index in images if index in job.admitting]
            if fresh:
                await self._admit_fresh(fresh)
        finally:
            for job, index in reversed(images):
                self._scheduler.return_image(job, index)

    async def _pause(self, chosen: Preemption, index: int) -> None:
        job, row = chosen.victim, chosen.row

        def paused(snapshot: bytes | None) -> None:
            if snapshot is None or row not in job.rows:  # it finished or was released meanwhile
                return
            self._scheduler.pause_row(job, row)
            if snapshot:
                self._snapshots.keep(job, index, snapshot)
            else:
                job.steps_done[index] = 0
            self._tally.count("fluid_preemptions_total", chosen.reason)

        try:
            await self._engine.thread.pause(row, paused)
        except EngineBroken:
            raise
        except Exception:  # the row runs on, and the other image waits for one that ends
            log.exception("no snapshot of a row of %s; it is not preempted again", job.lease.job_id)
            job.pauses[index] = MAX_PAUSES
        finally:
            job.pausing.discard(row)

    async def _resume(self, job: HeldJob, index: int) -> None:
        """Put an image on a row where its snapshot was taken, unless the snapshot does not fit."""
        admission, state = _admission(job, index), job.snapshots.pop(index)
        try:
            await self._give_rows([(job, index)], partial(self._engine.thread.restore, admission, state))
        except ValueError as error:
            log.warning("a snapshot of %s does not fit, the image starts over: %s", job.lease.job_id, error)
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("the engine failed to restore an image of %s", job.lease.job_id)
            self._scheduler.return_image(job, index)
            await self._completion.isolate_failure("restore", error, [job], 1)
        else:
            self._tally.count("fluid_resumed_rows_total")

    async def _admit_fresh(self, images: Images) -> None:
        jobs = list(dict.fromkeys(job for job, _ in images))
        began = time.monotonic()
        try:
            admissions = [_admission(job, index) for job, index in images]
            await self._give_rows(images, partial(self._engine.thread.admit, admissions))
        except ValueError as error:
            if len(jobs) == 1:
                await self._completion.reject(jobs[0], str(error))
                return
            for job in jobs:  # one of them is impossible: admitting them one by one shows which
                await self._admit_fresh([image for image in images if image[0] is job])
        except EngineBroken:
            raise
        except Exception as error:
            log.exception("the engine failed to admit %d images", len(images))
            for job, index in reversed(images):
                self._scheduler.return_image(job, index)
            await self._completion.isolate_failure("admit", error, jobs, len(images))
        else:
            self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "admit")
            for job in jobs:
                job.trace.add("admit", began, **{"fluid.images": len(images)})

    async def _give_rows(self, images: Images, enter: Callable[[Admitted], Awaitable[None]]) -> None:
        """Have the engine take the images in, and free the rows of jobs that ended meanwhile."""
        late: list[int] = []

        def admitted(rows: list[AdmittedRow]) -> None:
            for (job, index), given in zip(images, rows, strict=True):
                if job.closing or not self._scheduler.holds(job):
                    late.append(given.row)
                    continue
                self._scheduler.assign_row(job, index, given.row)
                job.steps_done[index], job.prompt_tokens = given.done, given.prompt_tokens
                job.trace.begin_decoding(index, given.done)

        thread = self._engine.thread
        await enter(admitted)
        if late:
            await thread.release(late)


def _admission(job: HeldJob, index: int) -> Admission:
    return Admission(job.request(index), job.preview_steps)
