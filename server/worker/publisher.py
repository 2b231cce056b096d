"""Encodes finished rows into files and stores them in Redis, beside the engine's thread: steps need not wait."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redis.exceptions import RedisError

from server.errors import EngineBroken, StorageUnavailable
from server.images import codec
from server.images.compositing import Source, blend
from server.images.recipe import make_recipe
from server.jobs import JobError, JobInput, JobState, Output
from server.metrics import Tally
from server.queue.lease_queue import LeaseQueue
from server.worker.completion import Completion
from server.worker.engine.row_states import StepNews
from server.worker.engine.slot import EngineSlot
from server.worker.results import ResultWriter
from server.worker.scheduling.held_job import HeldJob
from server.worker.scheduling.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
ENCODERS = 2
#: Up to 64 x 64 pixels are encoded on the event loop, in less time than handing them to another thread takes.
INLINE_BYTES = 64 * 64 * 3


class Publisher:
    """Hands over what steps produced: encodes and stores images, and finishes a job with its last one."""

    def __init__(
        self,
        queue: LeaseQueue,
        engine: EngineSlot,
        scheduler: Scheduler,
        completion: Completion,
        snapshots: SnapshotStore,
        results: ResultWriter,
        tally: Tally,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when an image could not be published."""
        self.running: set[asyncio.Task[None]] = set()  #: images on their way into Redis
        self._previews: set[asyncio.Task[None]] = set()
        self._queue = queue
        self._engine = engine
        self._scheduler = scheduler
        self._completion = completion
        self._snapshots = snapshots
        self._results = results
        self._tally = tally
        self._wake = wake
        self._pool = ThreadPoolExecutor(max_workers=ENCODERS, thread_name_prefix="encode")

    async def publish_news(self) -> None:
        """Hand over what steps produced: previews, snapshots, finished images; then deal with what failed."""
        failed: list[StepNews] = []
        news = self._engine.thread.news
        while news:
            latest = news.popleft()
            self._hand_over(latest)
            if latest.unreadable or latest.failed is not None:
                failed.append(latest)
        for each in failed:
            await self._isolate(each)

    def _hand_over(self, news: StepNews) -> None:
        rows = self._scheduler.rows
        for row, (step, pixels) in news.previews.items():
            if (job := rows.get(row)) is not None:
                self.preview(job, job.rows[row], step, pixels)
        self._snapshots.save(rows, {row: state for row, state in news.snapshots.items() if row in rows})
        for row, (state, pixels) in news.images.items():
            if (job := rows.get(row)) is None:  # released meanwhile
                continue
            job.batch_peak = max(job.batch_peak, state.batch_peak)
            index = self._scheduler.free_row(job, row, retry=False)
            job.steps_done[index] = job.lease.input.sampling.num_inference_steps
            job.predict_s = time.monotonic() - job.taken_at
            job.trace.end_decoding(index, state.batch_peak)
            self.publish(job, index, pixels)

    async def _isolate(self, news: StepNews) -> None:
        rows = self._scheduler.rows
        # Take all of them off their rows first: a failed image frees the rows of its job's other images.
        unreadable = {rows[row]: error for row, error in news.unreadable.items() if row in rows}
        for row in news.unreadable:
            if row in rows:
                self._scheduler.free_row(rows[row], row, retry=True)
        for job, error in unreadable.items():
            await self._completion.isolate_failure("image", error, [job], 1)
        if isinstance(news.failed, EngineBroken):  # no image is to blame
            raise news.failed
        if news.failed is not None:
            jobs = list(dict.fromkeys(rows[row] for row in news.failed_rows if row in rows))
            if jobs:
                await self._completion.isolate_failure("ar_step", news.failed, jobs, len(news.failed_rows))
            await self._engine.thread.release(news.failed_rows)  # of jobs that ended meanwhile

    def publish(self, job: HeldJob, index: int, pixels: bytes) -> None:
        """Encode and store a finished image in the background."""
        task = asyncio.create_task(self._publish(job, index, pixels))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def preview(self, job: HeldJob, index: int, step: int, pixels: bytes) -> None:
        """Publish an unfinished image. Best effort: the worker may exit without having done it."""
        number = job.preview_steps.index(step)
        task = asyncio.create_task(self._preview(job, index, number, pixels, job.last_preview.get(index)))
        job.last_preview[index] = task
        self._previews.add(task)
        task.add_done_callback(self._previews.discard)

    async def _preview(
        self, job: HeldJob, index: int, number: int, pixels: bytes, earlier: asyncio.Task[None] | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            data, _ = await loop.run_in_executor(self._pool, _encode, pixels, job.lease.input, job.source, {})
            if earlier is not None:  # which another thread may still encode
                await asyncio.wait([earlier])
            await self._queue.store_preview(job.lease, index, number, data)
        except (OSError, ValueError, RedisError) as error:
            log.warning("no preview %d of image %d of %s: %s", number, index, job.lease.job_id, error)

    async def _publish(self, job: HeldJob, index: int, pixels: bytes) -> None:
        try:
            with job.trace.piece("encode", **{"fluid.image": index}):
                output, data = await self._encode(job, index, pixels)
            output = await self._results.write(job, output, data)
            files = {} if output.location else {index: data}
            if len(job.outputs) < job.lease.input.n - 1:
                await self._store(job, output, data)
                files = {}
            job.outputs[index] = output
            if job.complete and not job.leaving:
                await self._results.extend(job)
        except StorageUnavailable as error:  # no job is to blame; no attempt of it is used up
            if not job.interrupted:
                log.warning("%s is requeued: %s", job.lease.job_id, error.message)
            job.interrupted = True
            self._wake()
            return
        except Exception as error:
            log.exception("cannot encode or store image %d of %s", index, job.lease.job_id)
            # The worker's loop frees its rows between steps; here a step may be running.
            job.failure = JobError("publish_failed", repr(error))
            self._wake()
            return
        if job.complete and not job.leaving:
            await self._completion.finish(job, JobState.SUCCEEDED, files=files)

    async def _encode(self, job: HeldJob, index: int, pixels: bytes) -> tuple[Output, bytes]:
        lease, given, source, info = job.lease, job.lease.input, job.source, self._engine.info
        metadata = make_recipe(given, index, info.checkpoint_sha256, info.terms)
        if len(pixels) <= INLINE_BYTES and source is None:
            data, encode_s = _encode(pixels, given, source, metadata)
        else:
            loop = asyncio.get_running_loop()
            data, encode_s = await loop.run_in_executor(self._pool, _encode, pixels, given, source, metadata)
        self._tally.observe("fluid_stage_duration_seconds", encode_s, "encode")
        self._tally.count("fluid_images_total", info.id)
        job.encode_s += encode_s
        output = Output(
            index=index,
            seed=given.seed_of(index),
            width=given.width,
            height=given.height,
            format=given.output_format,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            token=lease.token,
        )
        return output, data

    async def _store(self, job: HeldJob, output: Output, data: bytes) -> None:
        """Store an image of a job that has others to generate. The last one is stored with the terminal state."""
        if not output.location:
            began = time.monotonic()
            await self._completion.persist(lambda: self._queue.store_result(job.lease, output.index, data))
            self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "store")
            job.trace.add("store", began, **{"fluid.image": output.index})
        await self._snapshots.save_output(job, output)


def _encode(pixels: bytes, given: JobInput, source: Source | None, metadata: dict[str, Any]) -> tuple[bytes, float]:
    """Return (file, seconds that encoding took)."""
    began = time.monotonic()
    if source is not None and given.edit is not None:
        pixels = blend(pixels, source, given.edit.feather)
    data = codec.encode(pixels, (given.width, given.height), given.output_format, given.output_compression, metadata)
    return data, time.monotonic() - began
