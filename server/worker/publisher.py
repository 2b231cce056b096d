"""From a finished row's pixels to a file in Redis, beside the engine's thread, so that steps need not wait."""

import asyncio
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redis.exceptions import RedisError

from server.errors import EngineBroken
from server.images import codec
from server.images.compositing import Source, blend
from server.images.recipe import recipe
from server.jobs import JobError, JobInput, JobState, Output
from server.metrics import Tally
from server.model_info import ModelInfo
from server.queue.lease_queue import LeaseQueue
from server.worker.completion import Completion
from server.worker.held_job import HeldJob
from server.worker.snapshots import SnapshotStore

log = logging.getLogger(__name__)
ENCODERS = 2


class Publisher:
    """Encodes and stores pictures, and finishes a job with its last one."""

    def __init__(self, queue: LeaseQueue, ends: Completion, keeper: SnapshotStore, tally: Tally) -> None:
        self.model: ModelInfo | None = None
        self.running: set[asyncio.Task[None]] = set()
        self.showing: set[asyncio.Task[None]] = set()
        self._queue = queue
        self._ends = ends
        self._keeper = keeper
        self._tally = tally
        self._pool = ThreadPoolExecutor(max_workers=ENCODERS, thread_name_prefix="encode")

    def start(self, work: HeldJob, index: int, pixels: bytes) -> None:
        task = asyncio.create_task(self._publish(work, index, pixels))
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    def show(self, work: HeldJob, index: int, step: int, pixels: bytes) -> None:
        """A picture half done. Best effort: nobody waits for it, and the worker may go without having shown it."""
        number = work.preview_steps.index(step)
        task = asyncio.create_task(self._show(work, index, number, pixels))
        self.showing.add(task)
        task.add_done_callback(self.showing.discard)

    async def _show(self, work: HeldJob, index: int, number: int, pixels: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            data, _ = await loop.run_in_executor(self._pool, _encode, pixels, work.lease.input, work.source, {})
            await self._queue.store_preview(work.lease, index, number, data)
        except (OSError, ValueError, RedisError) as error:
            log.warning("no preview %d of image %d of %s: %s", number, index, work.lease.job_id, error)

    async def _publish(self, work: HeldJob, index: int, pixels: bytes) -> None:
        try:
            output, data = await self._encode(work, index, pixels)
            files = {index: data}
            if len(work.outputs) < work.lease.input.n - 1:
                await self._store(work, output, data)
                files = {}
        except Exception as error:
            log.exception("cannot encode or store image %d of %s", index, work.lease.job_id)
            # The worker's loop frees its rows between steps; here a step may be running.
            work.failure = JobError("publish_failed", repr(error))
            return
        work.outputs[index] = output
        if work.drawn and not (work.closing or work.lost or work.canceled):
            await self._ends.finish(work, JobState.SUCCEEDED, files=files)

    async def _encode(self, work: HeldJob, index: int, pixels: bytes) -> tuple[Output, bytes]:
        if self.model is None:
            raise EngineBroken("A picture is published before the model was loaded.")
        lease, job = work.lease, work.lease.input
        loop = asyncio.get_running_loop()
        metadata, source = recipe(job, index, self.model.checkpoint_sha256), work.source
        data, encode_s = await loop.run_in_executor(self._pool, lambda: _encode(pixels, job, source, metadata))
        self._tally.observe("fluid_stage_duration_seconds", encode_s, "encode")
        self._tally.count("fluid_images_total", self.model.id)
        work.encode_s += encode_s
        output = Output(
            index=index,
            seed=job.seed_of(index),
            width=job.width,
            height=job.height,
            format=job.output_format,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            token=lease.token,
        )
        return output, data

    async def _store(self, work: HeldJob, output: Output, data: bytes) -> None:
        """An image of a job that has others to draw. The last one goes with the job's end."""
        began = time.monotonic()
        await self._ends.persist(lambda: self._queue.store_result(work.lease, output.index, data))
        self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "store")
        await self._keeper.keep_output(work, output)


def _encode(pixels: bytes, job: JobInput, source: Source | None, metadata: dict[str, Any]) -> tuple[bytes, float]:
    began = time.monotonic()
    if source is not None and job.edit is not None:
        pixels = blend(pixels, source, job.edit.feather)
    data = codec.encode(pixels, (job.width, job.height), job.output_format, job.output_compression, metadata)
    return data, time.monotonic() - began
