"""The life of a job against a real Valkey: leases, fences, give-backs, cancellation."""

import asyncio

import pytest

from server.errors import JobExpired, QueueFull, UnknownJob
from server.jobs import JobError, JobState, Output
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.queue.statistics import QueuePosition, queue_counts
from tests.server.harness import MODEL, accept, empty, lapse, reclaimed, take, until_async

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_a_job_goes_through_and_leaves_nothing_in_line(queue: JobQueue, leases: LeaseQueue) -> None:
    """Finished entries that stay would be delivered again, and fill the memory."""
    await accept(queue, "a")
    lease = await take(leases)
    await leases.store_result(lease, 0, b"\x89PNG\xff")
    output = Output(0, 7, 32, 32, "png", 5, "00")
    assert await leases.finish(lease, JobState.SUCCEEDED, outputs=[output])
    record = await queue.get("a")
    assert (record.state, record.outputs, record.step) == (JobState.SUCCEEDED, (output,), 4)
    assert await queue.result(record, output) == b"\x89PNG\xff"
    assert await empty(queue)


async def test_the_last_picture_travels_with_the_end(queue: JobQueue, leases: LeaseQueue) -> None:
    """One write on disk instead of two; and whoever may not finish leaves no file behind either."""
    await accept(queue, "a")
    zombie = await take(leases)
    await lapse(queue, zombie.job_id)
    [heir] = await reclaimed(leases, "w2")
    for lease, data, done in ((zombie, b"late", False), (heir, b"\x89PNG\xff", True)):
        output = Output(0, 7, 32, 32, "png", 5, "00", token=lease.token)
        assert await leases.finish(lease, JobState.SUCCEEDED, outputs=[output], files={0: data}) is done
    record = await queue.get("a")
    assert await queue.result(record, record.outputs[0]) == b"\x89PNG\xff"
    assert await queue.redis.exists(queue.keys.result_bytes("a", zombie.token, 0)) == 0
    assert await queue.redis.ttl(queue.keys.result_bytes("a", heir.token, 0)) > queue.ttl_s


async def test_a_canceled_jobs_last_picture_is_not_kept(queue: JobQueue, leases: LeaseQueue) -> None:
    """An accepted cancel wins over a later success, picture and all."""
    await accept(queue, "a")
    lease = await take(leases)
    await queue.cancel("a")
    await leases.finish(lease, JobState.SUCCEEDED, files={0: b"x"})
    assert (await queue.get("a")).state is JobState.CANCELED
    assert await queue.redis.exists(queue.keys.result_bytes("a", lease.token, 0)) == 0


async def test_jobs_come_in_order_and_know_their_place(queue: JobQueue, leases: LeaseQueue) -> None:
    """Position must count jobs ahead, and first come is first served."""
    for job_id in "abc":
        await accept(queue, job_id)
    assert await queue.place(await queue.get("c")) == QueuePosition(2, 8.0)
    assert (await take(leases)).job_id == "a"
    assert await queue.place(await queue.get("c")) == QueuePosition(1, 4.0)
    assert await queue.place(await queue.get("a")) is None


async def test_who_waits_long_goes_up_a_class(queue: JobQueue, leases: LeaseQueue) -> None:
    """Under a steady stream of normal jobs a low one was never drawn."""
    await accept(queue, "old", priority="low")
    await accept(queue, "normal")
    await accept(queue, "high", priority="high")
    assert (await queue.place(await queue.get("old"))) == QueuePosition(2, 8.0)
    await queue.redis.zadd(queue.keys.since_zset(MODEL, "low"), {"old": 0})
    assert [(await take(leases)).job_id for _ in range(3)] == ["high", "old", "normal"]


async def test_a_caller_who_floods_waits_behind_himself(queue: JobQueue, leases: LeaseQueue) -> None:
    """First come first served across callers lets one script with ten thousand jobs shut everybody else out."""
    for i in range(4):
        await accept(queue, f"flood{i}", user="ann")
    await accept(queue, "big", user="bob", n=2)
    await accept(queue, "small", user="bob")
    await accept(queue, "carl", user="carl")
    places = [(await queue.place(await queue.get(j))) for j in ("flood0", "big", "carl")]
    assert [place.position for place in places if place] == [0, 1, 2]
    # Work decides, not the number of jobs: bob's picture of twice the size counts as two of ann's.
    order = [(await take(leases)).job_id for _ in range(7)]
    assert order == ["flood0", "big", "carl", "flood1", "flood2", "small", "flood3"]


async def test_who_cancels_a_flood_owes_nothing(queue: JobQueue, leases: LeaseQueue) -> None:
    """Only work that was done counts: a caller who canceled a thousand jobs stood behind everybody else's thousand."""
    for i in range(20):
        await accept(queue, f"flood{i}", user="ann")
    for i in range(20):
        await queue.cancel(f"flood{i}")
    for i in range(3):
        await accept(queue, f"bob{i}", user="bob")
    await accept(queue, "ann", user="ann")
    assert [(await take(leases)).job_id for _ in range(2)] == ["ann", "bob0"]


async def test_a_patient_take_leaves_fresh_jobs_to_idle_workers(queue: JobQueue, leases: LeaseQueue) -> None:
    """A worker that is full and takes one more for fairness must not snatch it from one that could begin at once."""
    await accept(queue, "a", priority="high")  # the one class that does not age
    assert await leases.take("busy", MODEL, patience_s=60.0) is None
    await queue.redis.zadd(queue.keys.since_zset(MODEL, "high"), {"a": 0})
    assert await leases.take("busy", MODEL, patience_s=60.0) is not None


async def test_enqueue_may_be_repeated(queue: JobQueue, leases: LeaseQueue) -> None:
    """A Redis client that retries after a lost answer must not draw twice."""
    await accept(queue, "a")
    await accept(queue, "a")
    await take(leases)
    assert await leases.take("w1", MODEL) is None
    assert (await queue_counts(queue)).submitted == {"job": 1}


async def test_a_full_queue_refuses(queue: JobQueue, leases: LeaseQueue) -> None:
    """Unbounded queues turn overload into hour-long latencies."""
    queue.max_queue = 1
    await accept(queue, "a")
    with pytest.raises(QueueFull, match="limit is 1"):
        await accept(queue, "b")
    with pytest.raises(UnknownJob):
        await queue.get("b")
    await take(leases)
    await accept(queue, "b")


async def test_an_idle_worker_is_woken(queue: JobQueue, leases: LeaseQueue) -> None:
    """Asking again and again would cost either latency or Redis' time."""
    waiting = asyncio.create_task(leases.take("w1", MODEL, block_s=5.0))
    await until_async(lambda: _blocked(queue))
    await accept(queue, "a")
    async with asyncio.timeout(2):
        lease = await waiting
    assert lease is not None and lease.job_id == "a"


async def _blocked(queue: JobQueue) -> bool:
    return bool((await queue.redis.info("clients"))["blocked_clients"])


async def test_a_worker_takes_only_jobs_of_its_model(queue: JobQueue, leases: LeaseQueue) -> None:
    """With two models in one Redis any worker drew any job: the picture was another model's than the job said."""
    await accept(queue, "a", model="other")
    assert await leases.take("w1", MODEL) is None
    lease = await leases.take("w1", "other")
    assert lease is not None
    await queue.redis.zadd(queue.keys.leases_zset("other"), {"a": 0})
    assert await leases.reclaim("w2", MODEL, [], count=10) == []
    assert len(await leases.reclaim("w2", "other", [], count=10)) == 1


async def test_a_zombies_finish_is_refused(queue: JobQueue, leases: LeaseQueue) -> None:
    """A worker that hung past its lease must not overwrite the result of the one that took over."""
    await accept(queue, "a")
    zombie = await take(leases, "w1")
    [heir] = await reclaimed(leases, "w2")
    assert (heir.token, heir.attempt) == (2, 2)
    await leases.store_result(zombie, 0, b"late")
    assert await leases.pulse([LeaseRenewal(zombie, True, 1)], renew=True) == ["lost"]
    assert not await leases.finish(zombie, JobState.SUCCEEDED)
    await leases.store_result(heir, 0, b"good")
    output = Output(0, 7, 32, 32, "png", 4, "00", token=heir.token)
    assert await leases.finish(heir, JobState.SUCCEEDED, outputs=[output])
    assert await queue.result(await queue.get("a"), output) == b"good"
    counts = await queue_counts(queue)
    assert (counts.redeliveries, counts.fenced) == (1, 1)
    assert await empty(queue)


async def test_a_zombies_renewal_does_not_steal_the_entry_back(queue: JobQueue, leases: LeaseQueue) -> None:
    """An unfenced renewal would keep a job alive whose new worker has died as well."""
    await accept(queue, "a")
    zombie = await take(leases, "w1")
    await reclaimed(leases, "w2")
    await leases.pulse([LeaseRenewal(zombie, True, 1)], renew=True)
    await lapse(queue, "a")
    await leases.pulse([LeaseRenewal(zombie, True, 1)], renew=True)
    assert await queue.redis.zscore(queue.keys.leases_zset(MODEL), "a") == 0


async def test_renewal_keeps_a_lease_beyond_its_length(queue: JobQueue, leases: LeaseQueue) -> None:
    """A picture that takes longer than a lease must not be drawn twice."""
    await accept(queue, "a")
    lease = await take(leases, "w1")
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.5 * leases.lease_ms / 1000
    while loop.time() < end:
        assert await leases.pulse([LeaseRenewal(lease, True, 2)], renew=True) == ["ok"]
        assert await leases.reclaim("w2", MODEL, [], count=10) == []
        await asyncio.sleep(0.1)
    record = await queue.get("a")
    assert (record.state, record.step) == (JobState.PROCESSING, 2)


async def test_a_given_back_job_is_taken_at_once_and_the_try_not_counted(queue: JobQueue, leases: LeaseQueue) -> None:
    """A drain must neither delay a job by a lease nor bring it nearer to the dead letters."""
    await accept(queue, "a")
    lease = await take(leases, "w1")
    assert await leases.give_back(lease) == "queued"
    again = await take(leases, "w2")
    assert (again.attempt, again.token) == (1, 3)
    assert not await leases.finish(lease, JobState.SUCCEEDED)
    assert await leases.finish(again, JobState.SUCCEEDED)


async def test_a_failing_job_ends_in_the_dead_letters(queue: JobQueue, leases: LeaseQueue) -> None:
    """A poison job that comes back for ever would stop the service."""
    await accept(queue, "a")
    lease = await take(leases)
    states = [await leases.give_back(lease, error=BOOM)]
    for _ in range(2):
        lease = await take(leases)
        assert lease.suspect
        states.append(await leases.give_back(lease, error=BOOM))
    assert states == ["queued", "queued", "failed"]
    record = await queue.get("a")
    assert (record.state, record.attempt, record.error) == (JobState.FAILED, 3, BOOM)
    [(_, letter)] = await queue.redis.xrange(queue.keys.dead_stream)
    assert letter["id"] == "a"
    assert await empty(queue)


@pytest.mark.parametrize(("tries", "alone"), [(1, []), (2, [2]), (3, [3]), (6, [4, 5, 6])])
async def test_the_later_half_of_the_tries_is_drawn_alone(
    queue: JobQueue, leases: LeaseQueue, tries: int, alone: list[int]
) -> None:
    """A job that shared its rows with one that kills workers lost try after try, and was alone only in its last:
    one more death, and a job that could be drawn had failed."""
    leases.max_attempts = tries
    await accept(queue, "a")
    found = [await take(leases, "w0")]
    for attempt in range(1, tries):
        await lapse(queue, "a")
        found += await leases.reclaim(f"w{attempt}", MODEL, [], count=1)
    assert [lease.attempt for lease in found if lease.suspect] == alone


async def test_a_job_that_kills_its_workers_fails_in_the_end(queue: JobQueue, leases: LeaseQueue) -> None:
    """No give-back, no error: only the count of starts can stop it."""
    leases.lease_ms = 50
    await accept(queue, "a")
    await take(leases, "w1")
    for consumer in ("w2", "w3"):
        await reclaimed(leases, consumer)
    async with asyncio.timeout(10):
        while (await queue.get("a")).state is not JobState.FAILED:
            assert await leases.reclaim("w4", MODEL, [], count=10) == []
            await asyncio.sleep(0.02)
    error = (await queue.get("a")).error
    assert error is not None
    assert error.code == "worker_lost"
    assert (await queue_counts(queue)).dead_letter_depth == 1


async def test_cancel_while_waiting_is_final(queue: JobQueue, leases: LeaseQueue) -> None:
    """Nobody may draw it any more."""
    await accept(queue, "a")
    await accept(queue, "b")
    assert (await queue.cancel("a")).state is JobState.CANCELED
    assert (await queue.cancel("a")).state is JobState.CANCELED
    assert (await take(leases)).job_id == "b"
    assert await leases.take("w1", MODEL) is None


async def test_cancel_while_running_wins_over_the_finish(queue: JobQueue, leases: LeaseQueue) -> None:
    """The caller was told that it is being canceled; a success afterwards would be a second answer."""
    await accept(queue, "a")
    lease = await take(leases)
    assert (await queue.cancel("a")).cancel_requested
    assert await leases.pulse([LeaseRenewal(lease, True, 1)], renew=False) == ["cancel"]
    await leases.store_result(lease, 0, b"x")
    assert await leases.finish(lease, JobState.SUCCEEDED)
    record = await queue.get("a")
    assert record.state is JobState.CANCELED
    assert record.outputs == ()
    assert not await queue.redis.exists(queue.keys.result_bytes("a", lease.token, 0))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancel_of_a_job_whose_worker_died(queue: JobQueue, leases: LeaseQueue, when: str) -> None:
    """The flag must be honoured by whoever picks the job up; and with no worker left, by the cancel itself."""
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


async def test_an_expired_job_is_told_from_an_unknown_one(queue: JobQueue, leases: LeaseQueue) -> None:
    """410 tells the caller that the job did run; 404 that the id is wrong."""
    await accept(queue, "a")
    await leases.finish(await take(leases), JobState.SUCCEEDED)
    assert 0 < await queue.redis.ttl(queue.keys.job_hash("a")) <= queue.ttl_s
    await queue.redis.delete(queue.keys.job_hash("a"))  # as its time to live does
    with pytest.raises(JobExpired):
        await queue.get("a")
    with pytest.raises(UnknownJob):
        await queue.get("never")
