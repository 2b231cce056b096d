"""Jobs per second with an engine that takes no time: the processors are the limit, and more workers cannot help."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.load.service import Service, service
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobInput, JobState
from server.model_info import ModelInfo
from server.queue.job_queue import Submission
from server.queue.statistics import queue_counts
from server.worker.engine.fake import FakeEngine

FILL_AT_ONCE = 50
WARM_UP_S = 1.0


async def by_workers(quick: bool) -> dict[str, Any]:
    """Return jobs per second by number of workers, from a backlog that never runs empty."""
    result: dict[str, Any] = {}
    for workers in (1, 2) if quick else (1, 2, 4, 8):
        async with service(workers, fake_step_ms=0.0, max_rows=16) as running:
            rate = await _drain(running, job(1), 1000 if quick else 6000, 1.0 if quick else 5.0)
        result[f"jobs_per_s_no_engine_{workers}_workers"] = round(rate, 1)
    return result


def job(steps: int) -> JobInput:
    """Return a job of one image with `steps` autoregressive steps."""
    info = ModelInfo.from_mapping(FakeEngine(1, 0.0).info())
    return resolve(ImageRequest(prompt="an apple", seed=1, num_inference_steps=steps), {info.id: info}, info.id)[0]


async def fill(running: Service, job: JobInput, count: int, prefix: str) -> None:
    """Enqueue `count` copies of a job, with ids from `prefix`."""
    for start in range(0, count, FILL_AT_ONCE):
        some = range(start, min(count, start + FILL_AT_ONCE))
        await asyncio.gather(*(running.queue.enqueue(Submission(f"{prefix}{i}", job, "job")) for i in some))


async def _drain(running: Service, job: JobInput, backlog: int, seconds: float) -> float:
    """Return finished jobs per second, from the end of the warm-up until `seconds` later or an empty backlog."""
    await fill(running, job, backlog, "job_")
    await asyncio.sleep(WARM_UP_S)
    begin, done = time.perf_counter(), await _done(running)
    end = begin
    while end - begin < seconds and (now := await _done(running)) < backlog:
        await asyncio.sleep(0.05)
        end = time.perf_counter()
    now = await _done(running)
    return (now - done) / (time.perf_counter() - begin)


async def _done(running: Service) -> int:
    return (await queue_counts(running.queue)).states[JobState.SUCCEEDED.value]
