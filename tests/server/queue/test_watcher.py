"""Waiting for the end of a job: it is never missed, whichever messages are lost."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from server.background import Crash, Supervisor
from server.errors import UnknownJob
from server.jobs import JobMetrics, JobState, Output
from server.queue.connection.subscription import Subscription
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import MESSAGE_BYTES, LeaseQueue
from server.queue.watcher import JobWatcher, Waiter
from tests.server.harness import PATIENCE_S, accept, job_input, take, until_async

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def watching(queue: JobQueue, namespace: str) -> AsyncIterator[JobWatcher]:
    watcher = JobWatcher(queue.redis, queue, namespace)

    async def report(crash: Crash) -> None:
        raise AssertionError(str(crash))

    async with Supervisor(report).running(watcher.tasks):
        yield watcher


async def subscribed(queue: JobQueue, watcher: JobWatcher) -> None:
    channel = queue.keys.answers_channel(watcher.name)

    async def count() -> int:
        return int((await queue.redis.pubsub_numsub(channel))[0][1])

    await until_async(count)


def test_a_wait_ends_on_time_on_uvloop() -> None:
    """Its timers have whole milliseconds: one could fire before the deadline by its clock, and then none was left. With
    `Prefer: wait=0.3` a request could wait for ever for a model without a worker."""

    async def wait_all() -> None:
        waits = [Waiter(cast(JobQueue, None), "job").end(0.0004 * each) for each in range(1, 250)]
        async with asyncio.timeout(PATIENCE_S):
            ends = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(end, TimeoutError) for end in ends)

    uvloop.run(wait_all())


async def test_an_end_before_the_wait_is_not_missed(queue: JobQueue) -> None:
    """A worker may finish before the gateway knows that the job was accepted."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            await queue.cancel("a")
            assert (await expected.end(60)).state is JobState.CANCELED


async def test_a_lost_message_is_made_up_by_polling(queue: JobQueue, leases: LeaseQueue) -> None:
    """This watcher subscribes in another namespace, where nothing is ever published."""
    async with watching(queue, "elsewhere") as watcher:
        with watcher.expect("a") as expected, watcher.expect("b") as other:
            await accept(queue, "a")
            await accept(queue, "b")
            await leases.finish(await take(leases), JobState.SUCCEEDED)
            assert (await expected.end(60)).state is JobState.SUCCEEDED
            with pytest.raises(TimeoutError):
                await other.end(0.01)


async def test_a_job_that_redis_lost_is_not_waited_for(queue: JobQueue) -> None:
    """Redis came back without its data: there will be neither a message nor an end."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(60))
            await queue.redis.delete(queue.keys.job_hash("a"))
            with pytest.raises(UnknownJob):
                await waiting


async def test_an_outage_that_ends_a_wait_ends_its_job(queue: JobQueue) -> None:
    """The caller gets a 503 and repeats the request; the first job ran on, so that an outage doubled the work."""
    async with watching(queue, queue.keys.namespace) as watcher:
        await accept(queue, "a")
        for job_id in ("a", "never accepted"):
            with pytest.raises(RedisConnectionError), watcher.no_orphans(job_id):
                raise RedisConnectionError("gone")

        async def canceled() -> bool:
            return (await queue.get("a")).state is JobState.CANCELED

        await until_async(canceled)


async def test_a_waiter_registered_before_the_accept_is_not_woken(queue: JobQueue) -> None:
    """Waiters register before the accept; polling at that moment must not take their job for a lost one."""
    async with watching(queue, queue.keys.namespace) as watcher:
        with watcher.expect("not yet"), watcher.expect("a") as expected:
            await accept(queue, "a")
            waiting = asyncio.create_task(expected.end(1.5))  # longer than between two polls
            with pytest.raises(TimeoutError):
                await waiting
            assert not expected.event.is_set()


@pytest.mark.parametrize("size", [1000, MESSAGE_BYTES + 1])
async def test_the_end_comes_with_the_record_and_a_small_image(queue: JobQueue, leases: LeaseQueue, size: int) -> None:
    """The record must be the stored one, whichever way it comes; a large image is read from Redis."""
    image, job = bytes(range(256)) * (size // 256 + 1), job_input()
    async with watching(queue, queue.keys.namespace) as watcher:
        await subscribed(queue, watcher)
        await queue.redis.publish(queue.keys.answers_channel(watcher.name), "no JSON")
        with watcher.expect("a") as expected:
            expected.known = job
            await queue.enqueue(Submission("a", job, "sync", waiter=watcher.name))
            lease = await take(leases)
            output = Output(0, 7, 32, 32, "png", len(image), hashlib.sha256(image).hexdigest(), lease.token)
            metrics = JobMetrics(0.1, 0.2, 0.3, 0.6, 1)
            await leases.finish(lease, JobState.SUCCEEDED, outputs=[output], metrics=metrics, files={0: image})
            stored = await queue.get("a")
            if size <= MESSAGE_BYTES:  # so that neither can be read again
                await queue.redis.delete(queue.keys.job_hash("a"), queue.keys.result_bytes("a", lease.token, 0))
            record = await expected.end(60)
    assert record is not None and (record.image is None) == (size > MESSAGE_BYTES)
    assert replace(record, image=None) == stored
    assert await queue.result(record, record.outputs[0]) == image


async def test_a_canceled_job_ends_its_wait_the_same_way(queue: JobQueue) -> None:
    """The same message is sent for every terminal state."""
    async with watching(queue, queue.keys.namespace) as watcher:
        await subscribed(queue, watcher)
        with watcher.expect("a") as expected:
            expected.known = job_input()
            await queue.enqueue(Submission("a", expected.known, "sync", waiter=watcher.name))
            await queue.cancel("a")
            await queue.redis.delete(queue.keys.job_hash("a"))
            record = await expected.end(60)
    assert record is not None and record.state is JobState.CANCELED and record.image is None


async def test_a_subscription_ends_with_its_connection(queue: JobQueue) -> None:
    got = asyncio.Queue[tuple[str, bytes]]()
    async with Subscription(queue.redis, lambda *message: got.put_nowait(message), "x", "y") as subscription:
        watched = asyncio.create_task(subscription.watch())
        await queue.redis.publish("y", b"\xff")
        assert await got.get() == ("y", b"\xff")
        found = [each["id"] for each in await queue.redis.client_list(_type="pubsub") if each["sub"] == "3"]
        await queue.redis.client_kill_filter(_id=found[0])
        with pytest.raises(RedisConnectionError):
            await watched
