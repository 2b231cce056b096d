"""Cost of the queue's operations with a short and a very long backlog; no worker runs, so the jobs keep waiting.

Figures are medians of single sequential calls, each a round trip that includes the write to disk if there is one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable
from typing import Any

from benchmarks.load.service import Service, service
from benchmarks.load.throughput import fill, job
from server.gateway import pagination
from server.model_info import ModelInfo
from server.queue.job_queue import Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.queue.statistics import queue_counts
from server.worker.engine.fake import FakeEngine

CALLS = 200


async def at_100000(quick: bool) -> dict[str, Any]:
    """Measure milliseconds by operation and backlog, and bytes of Valkey's memory per waiting job."""
    many = 2_000 if quick else 100_000
    result: dict[str, Any] = {}
    async with service(0) as running:
        info = ModelInfo.from_mapping(FakeEngine(1, 0.0).info())
        await Registry(running.queue.redis, running.settings.namespace).publish_model(info)
        empty = await _memory(running)
        result |= await _costs(running, 100)
        await fill(running, job(8), many - 100, "many_")
        result[f"bytes_per_waiting_job_at_{many}"] = round((await _memory(running) - empty) / many)
        result |= await _costs(running, many)
    return result


async def _memory(running: Service) -> int:
    return int((await running.queue.redis.info("memory"))["used_memory"])


async def _costs(running: Service, size: int) -> dict[str, float]:
    """Time each operation at a backlog of `size`, and leave it at that: each added job is taken and canceled."""
    queue, leases = running.queue, LeaseQueue(running.queue.redis, running.settings)
    waiting = job(8)
    await fill(running, waiting, 100 if size == 100 else 0, "few_")
    times: dict[str, list[float]] = {}

    async def timed(name: str, call: Awaitable[Any]) -> Any:
        begin = time.perf_counter()
        value = await call
        times.setdefault(name, []).append(time.perf_counter() - begin)
        return value

    for i in range(CALLS):
        job_id = f"probe_{size}_{i}"
        await timed("enqueue", queue.enqueue(Submission(job_id, waiting, "job")))
        await timed("place", queue.place(await timed("get", queue.get(job_id))))
        lease = await timed("take", leases.take("bench", waiting.model))
        await timed("list", pagination.page(queue, "", limit=20, after=None, status=None))
        if lease is not None:
            await timed("requeue", leases.requeue(lease))
        await timed("cancel", queue.cancel(job_id))
        if i % 10 == 0:
            await timed("counts", queue_counts(queue))
    return {f"{name}_ms_at_{size}": round(1000 * statistics.median(all_), 3) for name, all_ in times.items()}
