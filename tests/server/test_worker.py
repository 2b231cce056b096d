"""The worker's own decisions, against a real queue, without an engine or a process."""

from dataclasses import replace

import pytest
from harness import accept, take

from server.queue import Queue
from server.registry import Registry
from server.settings import Settings
from server.worker import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture
def worker(queue: Queue, settings: Settings) -> Worker:
    return Worker(replace(settings, max_rows=4), queue, Registry(queue.redis, settings.namespace))


async def test_a_dead_workers_jobs_are_shared_out(worker: Worker, queue: Queue) -> None:
    """One worker took as many lapsed jobs as it had rows, whatever each held: three times four pictures for four
    rows, while others stood idle."""
    for job_id in "abc":
        await accept(queue, job_id, n=4)
        await queue.give_back(await take(queue, "dead"))
    await worker._take()
    assert list(worker.batch.works) == ["a"]
    assert worker.batch.room() == 0
    worker.thread.close()
