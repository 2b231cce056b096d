"""Regression tests: bugs that the queue once had, each in its smallest form."""

import pytest

from server.jobs import JobError, JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.statistics import QueuePosition, queue_counts
from tests.server.harness import MODEL, accept, lapse, take

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_a_repeated_take_counts_one_attempt(queue: JobQueue, leases: LeaseQueue) -> None:
    """The Redis client repeats a script whose reply was lost. The repetition counted as another attempt, so a job on
    its last one failed as worker_lost while its worker was healthy."""
    leases.max_attempts = 1
    run, replies = leases.run, []

    async def reply_lost_once(name: str, *args: object) -> object:
        if name == "take":
            replies.append(await run(name, *args))  # type: ignore[arg-type]
        return await run(name, *args)  # type: ignore[arg-type]

    leases.run = reply_lost_once  # type: ignore[assignment]
    await accept(queue, "a")
    lease = await take(leases)
    assert (lease.attempt, len(replies)) == (1, 1) and int(replies[0][0][1]) == lease.token
    assert await leases.finish(lease, JobState.SUCCEEDED)
    assert (await queue_counts(queue)).redeliveries == 0


async def test_a_late_repetition_of_a_take_gets_no_lease_of_another(queue: JobQueue, leases: LeaseQueue) -> None:
    """A worker that froze between a take and its repetition got the token of the worker that had the job by then."""
    run, heirs = leases.run, []

    async def frozen_once(name: str, *args: object) -> object:
        answer = await run(name, *args)  # type: ignore[arg-type]
        if name != "take" or heirs:
            return answer
        await lapse(queue, "a")
        heirs.extend(await leases.reclaim("w2", MODEL, [], count=1))
        return await run(name, *args)  # type: ignore[arg-type]

    leases.run = frozen_once  # type: ignore[assignment]
    await accept(queue, "a")
    assert await leases.take("w1", MODEL) is None
    assert [heir.job_id for heir in heirs] == ["a"]


async def test_a_lone_worker_reclaims_a_job_whose_take_reply_was_lost(queue: JobQueue, leases: LeaseQueue) -> None:
    """The lease bore the worker's own name, so the worker renewed it forever, and without another one the job never
    ran."""
    await accept(queue, "a")
    await take(leases, "only")  # the reply is lost
    await lapse(queue, "a")
    assert await leases.reclaim("only", MODEL, ["a"], count=1) == []  # as if it ran the job: a late renewal
    await lapse(queue, "a")
    [lease] = await leases.reclaim("only", MODEL, ["other"], count=1)
    assert (lease.job_id, lease.attempt) == ("a", 2)


async def test_a_canceled_job_stops_counting_as_ahead(queue: JobQueue, leases: LeaseQueue) -> None:
    """Canceled jobs stayed in the stream until they were read, and counted in the position of all jobs behind."""
    for job_id in "abc":
        await accept(queue, job_id)
    await queue.cancel("a")
    await leases.requeue(await take(leases))
    assert (await queue.cancel("b")).state is JobState.CANCELED
    assert await queue.place(await queue.get("c")) == QueuePosition(0, 0.0)


async def test_the_dead_letters_are_bounded(queue: JobQueue, leases: LeaseQueue) -> None:
    """They kept the input of every job that ever failed."""
    leases.max_attempts = 1
    async with queue.redis.pipeline(transaction=False) as pipe:
        for _ in range(10_200):
            pipe.xadd(queue.keys.dead_letters_stream, {"id": "old"})
        await pipe.execute()
    await accept(queue, "a")
    await leases.requeue(await take(leases), error=BOOM)
    assert (await queue_counts(queue)).dead_letter_depth <= 10_100
    [(_, newest)] = await queue.redis.xrevrange(queue.keys.dead_letters_stream, count=1)
    assert newest["id"] == "a"


async def test_callers_who_never_return_do_not_fill_redis(queue: JobQueue, leases: LeaseQueue) -> None:
    """Each one-time `user` left an entry in the debts of its class for good: 1,200 of 1,200 stayed."""
    for number in range(1200):
        await accept(queue, f"job-{number}", user=f"guest-{number}")
        assert await leases.finish(await take(leases), JobState.SUCCEEDED)
    debts = queue.keys.debts_zset(MODEL, "normal")
    assert await queue.redis.zcard(debts) <= 1000
    assert 0 < await queue.redis.ttl(debts) <= 3600
