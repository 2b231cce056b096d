"""Waiting for the end of a job: it is never missed, whichever messages are lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.background import Crash, Supervisor
from server.errors import UnknownJob
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.watcher import JobWatcher
from tests.server.harness import accept, take

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def watching(queue: JobQueue, namespace: str) -> AsyncIterator[JobWatcher]:
    watcher = JobWatcher(queue.redis, queue, namespace)

    async def report(crash: Crash) -> None:
        raise AssertionError(str(crash))

    async with Supervisor(report).running(watcher.tasks):
        yield watcher


async def test_an_end_before_the_wait_is_not_missed(queue: JobQueue) -> None:
    """A worker may finish before the gateway knows that the job was accepted."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            await queue.cancel("a")
            assert (await expected.end(10)).state is JobState.CANCELED


async def test_a_lost_message_is_made_up_by_polling(queue: JobQueue, leases: LeaseQueue) -> None:
    """This watcher subscribes in another namespace, where nothing is ever published."""
    async with watching(queue, "elsewhere") as watcher:
        with watcher.expect("a") as expected, watcher.expect("b") as other:
            await accept(queue, "a")
            await accept(queue, "b")
            await leases.finish(await take(leases), JobState.SUCCEEDED)
            assert (await expected.end(10)).state is JobState.SUCCEEDED
            with pytest.raises(TimeoutError):
                await other.end(0.01)


async def test_a_job_that_redis_lost_is_not_waited_for(queue: JobQueue) -> None:
    """Redis came back without its data: there will be neither a message nor an end."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(10))
            await queue.redis.delete(queue.keys.job_hash("a"))
            with pytest.raises(UnknownJob):
                await waiting


async def test_a_waiter_registered_before_the_accept_is_not_woken(queue: JobQueue) -> None:
    """Waiters register before the accept; polling at that moment must not take their job for a lost one."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("not yet"), watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(1.5))  # longer than between two polls
            with pytest.raises(TimeoutError):
                await waiting
            assert not expected.event.is_set()
