"""The worker's decisions, against a real queue, with a fake engine and without a process."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import Engine
from server.worker.loop import Worker
from tests.server.harness import accept, lapse, take

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
