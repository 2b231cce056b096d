"""Bugs that the queue once had, each with the smallest story that shows it."""

import pytest

from server.jobs import JobError, JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.statistics import QueuePosition, queue_counts
from tests.server.harness import MODEL, accept, lapse, take

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_starting_twice_in_one_call_is_one_try(queue: JobQueue, leases: LeaseQueue) -> None:
    """The Redis client repeats a script whose reply was lost. The repetition counted as another try, so that a job
    on its last one failed as worker_lost while its worker was well."""
    leases.max_attempts = 1
    run, replies = leases.run, []

    async def reply_lost_once(name: str, *args: object) -> object:
        if name == "take":
            replies.append(await run(name, *args))  # type: ignore[arg-type]
        return await run(name, *args)  # type: ignore[arg-type]

    leases.run = reply_lost_once  # type: ignore[assignment]
    await accept(queue, "a")
    lease = await take(leases)
    assert (lease.attempt, lease.token, len(replies)) == (1, 1, 1)
    assert await leases.finish(lease, JobState.SUCCEEDED)
    assert (await queue_counts(queue)).redeliveries == 0


async def test_a_lone_worker_gets_a_job_back_that_it_never_heard_of(queue: JobQueue, leases: LeaseQueue) -> None:
    """Taken, but the reply was lost for good: the lease bore the worker's own name, so it renewed it for ever, and with
    no other worker the job was never drawn."""
    await accept(queue, "a")
    await take(leases, "only")  # whose reply nobody reads
    await lapse(queue, "a")
    assert await leases.reclaim("only", MODEL, ["a"], count=1) == []  # as if it worked on it: a late renewal
    await lapse(queue, "a")
    [lease] = await leases.reclaim("only", MODEL, ["other"], count=1)
    assert (lease.job_id, lease.attempt) == ("a", 2)


async def test_a_canceled_job_leaves_the_line_at_once(queue: JobQueue, leases: LeaseQueue) -> None:
    """Canceled jobs stayed in the stream until they were read, and all behind them saw them ahead."""
    for job_id in "abc":
        await accept(queue, job_id)
    await queue.cancel("a")
    await leases.give_back(await take(leases))
    assert (await queue.cancel("b")).state is JobState.CANCELED
    assert await queue.place(await queue.get("c")) == QueuePosition(0, 0.0)


async def test_the_dead_letters_are_bounded(queue: JobQueue, leases: LeaseQueue) -> None:
    """They held the input of every job that ever failed."""
    leases.max_attempts = 1
    async with queue.redis.pipeline(transaction=False) as pipe:
        for _ in range(10_200):
            pipe.xadd(queue.keys.dead_stream, {"id": "old"})
        await pipe.execute()
    await accept(queue, "a")
    await leases.give_back(await take(leases), error=BOOM)
    assert (await queue_counts(queue)).dead_letter_depth <= 10_100
    [(_, newest)] = await queue.redis.xrevrange(queue.keys.dead_stream, count=1)
    assert newest["id"] == "a"
