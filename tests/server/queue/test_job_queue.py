"""The life of a job against a real Valkey: order, limits, cancellation."""

import pytest

from server.errors import JobExpired, QueueFull, UnknownJob
from server.jobs import JobError, JobState, Output
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.queue.statistics import QueuePosition, queue_counts
from tests.server.harness import MODEL, accept, empty, lapse, take

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_a_finished_job_leaves_no_queue_entries(queue: JobQueue, leases: LeaseQueue) -> None:
    """Entries left behind would be delivered again, and fill the memory."""
    await accept(queue, "a")
    lease = await take(leases)
    await leases.store_result(lease, 0, b"\x89PNG\xff")
    output = Output(0, 7, 32, 32, "png", 5, "00", lease.token)
    assert await leases.finish(lease, JobState.SUCCEEDED, outputs=[output])
    record = await queue.get("a")
    assert (record.state, record.outputs, record.step) == (JobState.SUCCEEDED, (output,), 4)
    assert await queue.result(record, output) == b"\x89PNG\xff"
    assert await empty(queue)


async def test_jobs_are_taken_in_order_and_know_their_position(queue: JobQueue, leases: LeaseQueue) -> None:
    """The position counts the jobs ahead, and the first to come is served first."""
    for job_id in "abc":
        await accept(queue, job_id)
    assert await queue.place(await queue.get("c")) == QueuePosition(2, 8.0)
    assert (await take(leases)).job_id == "a"
    assert await queue.place(await queue.get("c")) == QueuePosition(1, 4.0)
    assert await queue.place(await queue.get("a")) is None


async def test_a_job_that_waits_long_is_promoted(queue: JobQueue, leases: LeaseQueue) -> None:
    """Under a steady stream of normal jobs a low-priority one used to starve."""
    await accept(queue, "old", priority="low")
    await accept(queue, "normal")
    await accept(queue, "high", priority="high")
    assert (await queue.place(await queue.get("old"))) == QueuePosition(2, 8.0)
    await queue.redis.zadd(queue.keys.waiting_since_zset(MODEL, "low"), {"old": 0})
    assert [(await take(leases)).job_id for _ in range(3)] == ["high", "old", "normal"]


async def test_a_flooding_caller_delays_only_their_own_jobs(queue: JobQueue, leases: LeaseQueue) -> None:
    """First come, first served across callers would let one script with ten thousand jobs starve all others."""
    for i in range(4):
        await accept(queue, f"flood{i}", user="ann")
    await accept(queue, "big", user="bob", n=2)
    await accept(queue, "small", user="bob")
    await accept(queue, "carl", user="carl")
    places = [(await queue.place(await queue.get(j))) for j in ("flood0", "big", "carl")]
    assert [place.position for place in places if place] == [0, 1, 2]
    # Work decides, not the number of jobs: bob's job of two images counts as two of ann's.
    order = [(await take(leases)).job_id for _ in range(7)]
    assert order == ["flood0", "big", "carl", "flood1", "flood2", "small", "flood3"]


async def test_canceled_jobs_are_not_charged(queue: JobQueue, leases: LeaseQueue) -> None:
    """Only work that was served counts: canceling a thousand jobs used to put a caller behind all others."""
    for i in range(20):
        await accept(queue, f"flood{i}", user="ann")
    for i in range(20):
        await queue.cancel(f"flood{i}")
    for i in range(3):
        await accept(queue, f"bob{i}", user="bob")
    await accept(queue, "ann", user="ann")
    assert [(await take(leases)).job_id for _ in range(2)] == ["ann", "bob0"]


async def test_enqueue_is_idempotent(queue: JobQueue, leases: LeaseQueue) -> None:
    """A Redis client that retries after a lost reply must not enqueue twice."""
    await accept(queue, "a")
    await accept(queue, "a")
    await take(leases)
    assert await leases.take("w1", MODEL) is None
    assert (await queue_counts(queue)).submitted == {"job": 1}


async def test_a_full_queue_rejects_jobs(queue: JobQueue, leases: LeaseQueue) -> None:
    """Unbounded queues turn overload into hour-long latencies."""
    queue.limits["max_queue"] = 1
    await accept(queue, "a")
    with pytest.raises(QueueFull, match="limit is 1"):
        await accept(queue, "b")
    with pytest.raises(UnknownJob):
        await queue.get("b")
    await take(leases)
    await accept(queue, "b")


async def test_cancel_while_waiting_is_final(queue: JobQueue, leases: LeaseQueue) -> None:
    """No worker may take it any more."""
    await accept(queue, "a")
    await accept(queue, "b")
    assert (await queue.cancel("a")).state is JobState.CANCELED
    assert (await queue.cancel("a")).state is JobState.CANCELED
    assert (await take(leases)).job_id == "b"
    assert await leases.take("w1", MODEL) is None


async def test_cancel_while_running_wins_over_the_finish(queue: JobQueue, leases: LeaseQueue) -> None:
    """The caller was told that the job is being canceled; a later success would contradict that."""
    await accept(queue, "a")
    lease = await take(leases)
    assert (await queue.cancel("a")).cancel_requested
    assert await leases.renew([LeaseRenewal(lease, True, 1)], extend=False) == ["cancel"]
    await leases.store_result(lease, 0, b"x")
    assert await leases.finish(lease, JobState.SUCCEEDED)
    record = await queue.get("a")
    assert record.state is JobState.CANCELED
    assert record.outputs == ()
    assert not await queue.redis.exists(queue.keys.result_bytes("a", lease.token, 0))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancel_of_a_job_whose_worker_died(queue: JobQueue, leases: LeaseQueue, when: str) -> None:
    """The next worker must honour the flag; with no worker left, the cancel itself ends the job."""
    await accept(queue, "a")
    lease = await take(leases, "w1")
    if when == "before":
        await queue.cancel("a")
        await lapse(queue, "a")
        assert await leases.reclaim("w2", MODEL, [], count=10) == []
    else:
        await lapse(queue, "a")
        await queue.cancel("a")
    assert (await queue.get("a")).state is JobState.CANCELED
    assert not await leases.finish(lease, JobState.SUCCEEDED)
    assert await empty(queue)


async def test_an_expired_job_differs_from_an_unknown_one(queue: JobQueue, leases: LeaseQueue) -> None:
    """410 tells the caller that the job existed; 404 that the id is wrong."""
    await accept(queue, "a")
    await leases.finish(await take(leases), JobState.SUCCEEDED)
    assert 0 < await queue.redis.ttl(queue.keys.job_hash("a")) <= queue.ttl_s
    await queue.redis.delete(queue.keys.job_hash("a"))  # as its time to live does
    with pytest.raises(JobExpired):
        await queue.get("a")
    with pytest.raises(UnknownJob):
        await queue.get("never")
