"""The worker's decisions, against a real queue, with a fake engine and without a process."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from server.images import codec
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import Engine
from server.worker.loop import Worker
from tests.server.harness import accept, job_input, lapse, take, until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
async def worker(leases: LeaseQueue, settings: Settings) -> AsyncIterator[Worker]:
    def factory(checkpoint: str) -> Engine:
        return FakeEngine(4, 0.0, checkpoint)

    made = Worker(replace(settings, max_rows=4), leases, Registry(leases.redis, settings.namespace), factory)
    await made._install(*await made._load("fake"))
    yield made
    made.engine.thread.close()


async def test_a_dead_workers_jobs_are_shared_out(worker: Worker, queue: JobQueue, leases: LeaseQueue) -> None:
    """One worker used to reclaim as many jobs as it had rows, whatever their size: three times four images for four
    rows, while other workers were idle."""
    for job_id in "abc":
        await accept(queue, job_id, n=4)
        await take(leases, "dead")
    await lapse(queue, *"abc")
    await worker.taker.take()
    assert list(worker.scheduler.jobs) == ["a"]
    assert worker.scheduler.room() == 0


async def test_a_format_that_cannot_be_encoded_fails_its_jobs_alone(
    queue: JobQueue, leases: LeaseQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What refuses one output format only must not be tried without end, nor hold up images of another."""
    encode = codec.encode

    def picky(pixels: bytes, size: tuple[int, int], output_format: str, *rest: Any) -> bytes:
        if output_format == "webp":
            raise ValueError("refused")
        return encode(pixels, size, output_format, *rest)

    monkeypatch.setattr(codec, "encode", picky)
    for number, output_format in ((1, "webp"), (3, "webp"), (2, "png")):
        job = replace(job_input(n=number, num_inference_steps=2), output_format=output_format)
        await queue.enqueue(Submission(f"job_{number}", job, "job"))
    registry = Registry(queue.redis, settings.namespace)
    rows = replace(settings, max_rows=4)
    worker = Worker(rows, leases, registry, lambda checkpoint: FakeEngine(4, 0.0, checkpoint))
    running = asyncio.create_task(worker.run())

    async def ends() -> list[tuple[str, int]]:
        records = [await queue.get(f"job_{number}") for number in (1, 2, 3)]
        return [(each.state, each.attempt) for each in records] if all(each.state.terminal for each in records) else []

    assert await until_async(ends) == [("failed", 3), ("succeeded", 1), ("failed", 3)]
    worker.stop()
    await running


async def test_a_job_of_more_images_than_the_engine_has_rows_ends(
    queue: JobQueue, leases: LeaseQueue, settings: Settings
) -> None:
    """With fewer rows than FLUID_MAX_ROWS the images waited without end, together, for more rows than there are."""
    worker = Worker(settings, leases, Registry(queue.redis, settings.namespace), lambda name: FakeEngine(4, 0.0, name))
    running = asyncio.create_task(worker.run())
    await accept(queue, "a", n=6)

    async def ended() -> bool:
        return (await queue.get("a")).state.terminal

    await until_async(ended)
    assert len((await queue.get("a")).outputs) == 6 and worker.heartbeat._describe().max_rows == 4
    worker.stop()
    await running
