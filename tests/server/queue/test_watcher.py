"""Waiting for the end of a job: nothing is missed, whatever is lost on the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

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
    watcher.start()
    try:
        yield watcher
    finally:
        await watcher.stop()


async def test_an_end_before_anybody_listens_is_not_missed(queue: JobQueue) -> None:
    """A worker may be done before the gateway hears that the job was accepted."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            await queue.cancel("a")
            assert (await expected.end(10)).state is JobState.CANCELED


async def test_a_lost_message_costs_a_look_and_nothing_else(queue: JobQueue, leases: LeaseQueue) -> None:
    """Nothing is ever published where this watcher listens."""
    async with watching(queue, "elsewhere") as watcher:
        with watcher.expect("a") as expected, watcher.expect("b") as other:
            await accept(queue, "a")
            await accept(queue, "b")
            await leases.finish(await take(leases), JobState.SUCCEEDED)
            assert (await expected.end(10)).state is JobState.SUCCEEDED
            with pytest.raises(TimeoutError):
                await other.end(0.01)


async def test_a_job_that_redis_forgot_is_not_waited_for(queue: JobQueue) -> None:
    """Redis came back without its data: there will be neither a message nor an end."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(10))
            await queue.redis.delete(queue.keys.job_hash("a"))
            with pytest.raises(UnknownJob):
                await waiting


async def test_a_job_that_is_just_being_accepted_wakes_nobody(queue: JobQueue) -> None:
    """Callers register before the accept; a look in that moment must not take them for forgotten ones."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("not yet"), watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(1.5))  # longer than between two looks
            with pytest.raises(TimeoutError):
                await waiting
            assert not expected.event.is_set()
