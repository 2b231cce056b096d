"""From a finished row's pixels to a file in Redis, beside the engine's thread, so that steps need not wait."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from server import __version__, images
from server.batching import Work
from server.jobs import JobInput, ModelInfo, Output
from server.metrics import Tally
from server.queue import Queue

ENCODERS = 2
Persist = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]


class Publisher:
    """Encodes and stores pictures; `persist` repeats a write that Redis did not answer."""

    def __init__(self, queue: Queue, info: ModelInfo, tally: Tally, persist: Persist) -> None:
        self._queue = queue
        self._info = info
        self._tally = tally
        self._persist = persist
        self._pool = ThreadPoolExecutor(max_workers=ENCODERS, thread_name_prefix="encode")

    async def publish(self, work: Work, index: int, pixels: bytes) -> None:
        lease, job = work.lease, work.lease.input
        loop = asyncio.get_running_loop()
        metadata = recipe(job, index, self._info.checkpoint_sha256)
        data, encode_s = await loop.run_in_executor(self._pool, _encode, pixels, job, metadata)
        began = time.monotonic()
        await self._persist(lambda: self._queue.store_result(lease, index, data))
        self._tally.observe("fluid_stage_duration_seconds", encode_s, "encode")
        self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "store")
        self._tally.count("fluid_images_total", self._info.id)
        work.encode_s += encode_s
        work.outputs[index] = Output(
            index=index,
            seed=job.seed_of(index),
            width=job.width,
            height=job.height,
            format=job.output_format,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )


def _encode(pixels: bytes, job: JobInput, metadata: dict[str, Any]) -> tuple[bytes, float]:
    began = time.monotonic()
    data = images.encode(pixels, (job.width, job.height), job.output_format, job.output_compression, metadata)
    return data, time.monotonic() - began


def recipe(job: JobInput, index: int, checkpoint_sha256: str) -> dict[str, Any]:
    """Everything that is needed to draw this one picture again; goes into the file."""
    return {
        "prompt": job.prompt,
        "seed": job.seed_of(index),
        "size": f"{job.width}x{job.height}",
        "quality": job.quality,
        "num_inference_steps": job.num_inference_steps,
        "diffusion_steps": job.diffusion_steps,
        "guidance_scale": job.guidance_scale,
        "guidance_schedule": job.guidance_schedule,
        "temperature": job.temperature,
        "model": job.model,
        "checkpoint_sha256": checkpoint_sha256,
        "software": f"fluid-serve {__version__}",
    }
