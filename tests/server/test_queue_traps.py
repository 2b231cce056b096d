"""Bugs that the queue once had, each with the smallest story that shows it."""

import asyncio

import pytest
from harness import accept, empty, reclaimed, take

from server.jobs import JobError, JobState, Lease
from server.queue import Pulse, Queue

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_running_jobs_do_not_hide_a_lapsed_one_behind_them(queue: Queue) -> None:
    """XAUTOCLAIM looks at ten entries per claim wanted and then stops. Asked from the start each time, a worker with
    one free row never saw a dead worker's job behind ten that were being drawn."""
    running = [await take(queue, "busy") for i in range(30) if await accept(queue, f"running{i}")]
    await accept(queue, "lapsed")
    await take(queue, "dead")
    queue.lease_ms = 200
    leases: list[Lease] = []
    async with asyncio.timeout(10):
        while not leases:
            await queue.pulse("busy", [Pulse(lease, True, 1) for lease in running], renew=True)
            leases = await queue.reclaim("w1", set(), count=1)
    assert [lease.job_id for lease in leases] == ["lapsed"]


async def test_starting_twice_in_one_call_is_one_try(queue: Queue) -> None:
    """The Redis client repeats a script whose reply was lost. The repetition counted as another try, so that a job
    on its last one failed as worker_lost while its worker was well."""
    queue.max_attempts = 1
    run, replies = queue._run, []

    async def reply_lost_once(name: str, *args: object) -> object:
        if name == "start":
            replies.append(await run(name, *args))  # type: ignore[arg-type]
        return await run(name, *args)  # type: ignore[arg-type]

    queue._run = reply_lost_once  # type: ignore[assignment]
    await accept(queue, "a")
    lease = await take(queue)
    assert (lease.attempt, lease.token, len(replies)) == (1, 1, 1)
    assert await queue.finish(lease, JobState.SUCCEEDED)
    assert (await queue.counts()).redeliveries == 0


async def test_a_canceled_job_that_expires_unread_leaves_the_count_of_places_right(queue: Queue) -> None:
    """Canceled in a queue that nobody read until its record was gone, it was never counted as taken: every later job
    saw one job more ahead of it than there was, for ever."""
    await accept(queue, "a")
    await queue.cancel("a")
    await queue.redis.delete(queue.keys.job_hash("a"))  # as its time to live does
    await accept(queue, "b")
    assert (await take(queue)).job_id == "b"
    await accept(queue, "c")
    assert await queue.position(await queue.get("c")) == 0


async def test_canceling_a_returned_job_removes_its_entry_at_once(queue: Queue) -> None:
    """It is a delivered entry, which nothing holds in the stream: only a worker with room would have cleared it."""
    await accept(queue, "a")
    await queue.give_back(await take(queue))
    assert (await queue.cancel("a")).state is JobState.CANCELED
    assert await empty(queue)
    assert await queue.reclaim("w2", set(), count=10) == []


async def test_consumers_of_dead_workers_are_removed_in_time(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker has a name of its own, and one that is killed never says goodbye: its consumer stayed for ever."""
    monkeypatch.setattr("server.queue.CONSUMER_DEAD_MS", -1)
    for job_id, consumer in (("a", "killed"), ("b", "holding")):
        await accept(queue, job_id)
        lease = await take(queue, consumer)
        if consumer == "killed":
            await queue.finish(lease, JobState.SUCCEEDED)
    await queue.leave("w1")
    names = [info["name"] for info in await queue.redis.xinfo_consumers(queue.keys.jobs_stream, "workers")]
    assert names == ["holding"]
    [again] = await reclaimed(queue, "w2")
    assert again.job_id == "b"


async def test_the_dead_letters_are_bounded(queue: Queue) -> None:
    """They held the input of every job that ever failed."""
    queue.max_attempts = 1
    async with queue.redis.pipeline(transaction=False) as pipe:
        for _ in range(10_200):
            pipe.xadd(queue.keys.dead_stream, {"id": "old"})
        await pipe.execute()
    await accept(queue, "a")
    await queue.give_back(await take(queue), error=BOOM)
    assert (await queue.counts()).dead_letter_depth <= 10_100
    [(_, newest)] = await queue.redis.xrevrange(queue.keys.dead_stream, count=1)
    assert newest["id"] == "a"
