"""Leases against a real Valkey: taking, fencing, renewal, requeueing, crashes."""

import asyncio
import time
from dataclasses import replace

import pytest

from server.jobs import JobError, JobState, Output
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue, LeaseRenewal, Preempting
from server.queue.statistics import queue_counts
from server.settings import Settings
from tests.server.harness import MODEL, accept, empty, lapse, reclaimed, take, until_async

pytestmark = pytest.mark.anyio
BOOM = JobError("engine_error", "boom")


async def test_finish_stores_the_last_image(queue: JobQueue, leases: LeaseQueue) -> None:
    """One write to disk instead of two; and a fenced finish leaves no file behind."""
    await accept(queue, "a")
    zombie = await take(leases)
    await lapse(queue, zombie.job_id)
    [heir] = await reclaimed(leases, "w2")
    for lease, data, done in ((zombie, b"late", False), (heir, b"\x89PNG\xff", True)):
        output = Output(0, 7, 32, 32, "png", 5, "00", token=lease.token)
        assert bool(await leases.finish(lease, JobState.SUCCEEDED, outputs=[output], files={0: data})) is done
    record = await queue.get("a")
    assert await queue.result(record, record.outputs[0]) == b"\x89PNG\xff"
    assert await queue.redis.exists(queue.keys.result_bytes("a", zombie.token, 0)) == 0
    assert await queue.redis.ttl(queue.keys.result_bytes("a", heir.token, 0)) > queue.ttl_s


async def test_the_last_image_of_a_canceled_job_is_not_stored(queue: JobQueue, leases: LeaseQueue) -> None:
    """An accepted cancel wins over a later success and its image."""
    await accept(queue, "a")
    lease = await take(leases)
    await queue.cancel("a")
    await leases.finish(lease, JobState.SUCCEEDED, files={0: b"x"})
    assert (await queue.get("a")).state is JobState.CANCELED
    assert await queue.redis.exists(queue.keys.result_bytes("a", lease.token, 0)) == 0


async def test_min_wait_leaves_fresh_jobs_to_idle_workers(queue: JobQueue, leases: LeaseQueue) -> None:
    """A full worker that takes one more for fairness must not snatch it from an idle one."""
    await accept(queue, "a", priority="high")  # the one class without ageing
    assert await leases.take("busy", MODEL, min_wait_s=60.0) is None
    await queue.redis.zadd(queue.keys.waiting_since_zset(MODEL, "high"), {"a": 0})
    assert await leases.take("busy", MODEL, min_wait_s=60.0) is not None


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        ({}, []),
        ({"normal": Preempting(False, True, ["flood"])}, ["small"]),
        ({"normal": Preempting(False, True, ["flood", "small"])}, []),
        ({"normal": Preempting(False, False, [])}, []),
        ({"normal": Preempting(True, False, [])}, ["flood1", "small", "flood2"]),
        ({"high": Preempting(True, True, [])}, []),
        ({"low": Preempting(False, True, ["flood"]), "normal": Preempting(False, True, ["flood"])}, ["small", "batch"]),
    ],
)
async def test_a_full_worker_takes_what_may_preempt(
    queue: JobQueue, leases: LeaseQueue, wanted: dict[str, Preempting], taken: list[str]
) -> None:
    """By class and caller; the order among those is the same as ever, and a flood in front of them is passed."""
    for job_id in ("flood1", "flood2"):
        await accept(queue, job_id, user="flood")
    await accept(queue, "small", user="small")
    await accept(queue, "batch", user="other", priority="low")
    found = []
    while (lease := await leases.take("w1", MODEL, preempting=wanted)) is not None:
        found.append(lease.job_id)
    assert found == taken


async def test_a_job_that_aged_into_its_class_preempts_by_share_alone(queue: JobQueue, settings: Settings) -> None:
    """Else a flood of class low would in time preempt its own rows."""
    leases = LeaseQueue(queue.redis, replace(settings, ageing_s=0.0))
    await accept(queue, "old", user="flood", priority="low")
    by_class = {each: Preempting(True, False, []) for each in ("high", "normal")}
    assert await leases.take("w1", MODEL, preempting=by_class) is None
    assert (await queue.redis.hget(queue.keys.job_hash("old"), "class")) != "low"
    by_share = {each: Preempting(True, True, []) for each in ("high", "normal")}
    assert await leases.take("w1", MODEL, preempting=by_share) is not None


async def test_an_idle_worker_is_woken_up(queue: JobQueue, leases: LeaseQueue) -> None:
    """Polling would cost either latency or load on Redis."""
    waiting = asyncio.create_task(leases.take("w1", MODEL, block_s=60.0))
    await until_async(lambda: _blocked(queue))
    await accept(queue, "a")
    async with asyncio.timeout(50):  # less than the longest block
        lease = await waiting
    assert lease is not None and lease.job_id == "a"


async def _blocked(queue: JobQueue) -> bool:
    return bool((await queue.redis.info("clients"))["blocked_clients"])


async def test_a_worker_takes_only_jobs_of_its_model(queue: JobQueue, leases: LeaseQueue) -> None:
    """With two models in one Redis, workers used to take jobs of either, and images came from the wrong model."""
    await accept(queue, "a", model="other")
    assert await leases.take("w1", MODEL) is None
    lease = await leases.take("w1", "other")
    assert lease is not None
    await queue.redis.zadd(queue.keys.leases_zset("other"), {"a": 0})
    assert await leases.reclaim("w2", MODEL, [], count=10) == []
    assert len(await leases.reclaim("w2", "other", [], count=10)) == 1


async def test_finish_of_a_lost_lease_is_rejected(queue: JobQueue, leases: LeaseQueue) -> None:
    """A worker that hung past its lease must not overwrite the result of the one that took over."""
    await accept(queue, "a")
    zombie = await take(leases, "w1")
    await lapse(queue, "a")
    [heir] = await reclaimed(leases, "w2")
    assert heir.attempt == 2 and heir.token != zombie.token
    await leases.store_result(zombie, 0, b"late")
    assert await leases.renew([LeaseRenewal(zombie, True, 1)], extend=True) == ["lost"]
    assert not await leases.finish(zombie, JobState.SUCCEEDED)
    await leases.store_result(heir, 0, b"good")
    output = Output(0, 7, 32, 32, "png", 4, "00", token=heir.token)
    assert await leases.finish(heir, JobState.SUCCEEDED, outputs=[output])
    assert await queue.result(await queue.get("a"), output) == b"good"
    counts = await queue_counts(queue)
    assert (counts.redeliveries, counts.fenced) == (1, 1)
    assert await empty(queue)


async def test_renewal_of_a_lost_lease_extends_nothing(queue: JobQueue, leases: LeaseQueue) -> None:
    """An unfenced renewal would keep the lease of a job alive whose new worker has died as well."""
    await accept(queue, "a")
    zombie = await take(leases, "w1")
    await lapse(queue, "a")
    await reclaimed(leases, "w2")
    await leases.renew([LeaseRenewal(zombie, True, 1)], extend=True)
    await lapse(queue, "a")
    await leases.renew([LeaseRenewal(zombie, True, 1)], extend=True)
    assert await queue.redis.zscore(queue.keys.leases_zset(MODEL), "a") == 0


async def test_renewal_keeps_a_lease_beyond_its_length(queue: JobQueue, settings: Settings) -> None:
    """An image that takes longer than a lease must not be generated twice."""
    await accept(queue, "a")
    leases = LeaseQueue(queue.redis, replace(settings, lease_s=60.0))
    lease = await take(leases, "w1")
    for _ in range(4):
        assert await leases.renew([LeaseRenewal(lease, True, 2)], extend=True) == ["ok"]
        await queue.redis.zincrby(
            queue.keys.leases_zset(MODEL), -0.7 * leases.lease_ms / 1000, "a"
        )  # as if time had passed
        assert await leases.reclaim("w2", MODEL, [], count=10) == []
    record = await queue.get("a")
    assert (record.state, record.step) == (JobState.PROCESSING, 2)


async def test_a_requeued_job_is_available_at_once_and_its_attempt_not_counted(
    queue: JobQueue, leases: LeaseQueue
) -> None:
    """A drain must neither delay a job by a lease nor bring it nearer to the dead letters."""
    await accept(queue, "a")
    lease = await take(leases, "w1")
    assert await leases.requeue(lease) == "queued"
    again = await take(leases, "w2")
    assert again.attempt == 1 and again.token != lease.token
    assert not await leases.finish(lease, JobState.SUCCEEDED)
    assert await leases.finish(again, JobState.SUCCEEDED)


async def test_a_failing_job_becomes_a_dead_letter(queue: JobQueue, leases: LeaseQueue) -> None:
    """A poison job that is redelivered forever would stop the service."""
    await accept(queue, "a")
    lease = await take(leases)
    states = [await leases.requeue(lease, error=BOOM)]
    for _ in range(2):
        lease = await take(leases)
        assert lease.suspect
        states.append(await leases.requeue(lease, error=BOOM))
    assert states == ["queued", "queued", "failed"]
    record = await queue.get("a")
    assert (record.state, record.attempt, record.error) == (JobState.FAILED, 3, BOOM)
    [(_, letter)] = await queue.redis.xrange(queue.keys.dead_letters_stream)
    assert letter["id"] == "a"
    assert await empty(queue)


@pytest.mark.parametrize(("attempts", "alone"), [(1, []), (2, [2]), (3, [3]), (6, [4, 5, 6])])
async def test_the_second_half_of_the_attempts_runs_alone(
    queue: JobQueue, leases: LeaseQueue, attempts: int, alone: list[int]
) -> None:
    """A job that shared steps with one that kills workers lost attempt after attempt, and ran alone only in the last:
    one more crash, and a healthy job had failed."""
    leases.max_attempts = attempts
    await accept(queue, "a")
    found = [await take(leases, "w0")]
    for attempt in range(1, attempts):
        await lapse(queue, "a")
        found += await leases.reclaim(f"w{attempt}", MODEL, [], count=1)
    assert [lease.attempt for lease in found if lease.suspect] == alone


async def test_a_job_that_kills_its_workers_fails_eventually(queue: JobQueue, leases: LeaseQueue) -> None:
    """There is no requeue and no error: only the count of attempts can stop it."""
    leases.lease_ms = 50
    await accept(queue, "a")
    await take(leases, "w1")
    for consumer in ("w2", "w3"):
        await reclaimed(leases, consumer)
    async with asyncio.timeout(60):
        while (await queue.get("a")).state is not JobState.FAILED:
            assert await leases.reclaim("w4", MODEL, [], count=10) == []
            await asyncio.sleep(0.02)
    error = (await queue.get("a")).error
    assert error is not None
    assert error.code == "worker_lost"
    assert (await queue_counts(queue)).dead_letter_depth == 1


async def test_leases_of_a_clock_that_was_set_back_end(queue: JobQueue, leases: LeaseQueue) -> None:
    """The lease of a dead worker lay as far in the future as Redis' clock had been."""
    await accept(queue, "a")
    lease = await take(leases)
    await queue.redis.zadd(queue.keys.leases_zset(MODEL), {lease.job_id: time.time() + 3600})
    assert await leases.reclaim("w2", MODEL, [], count=1) == []
    assert await queue.redis.zscore(queue.keys.leases_zset(MODEL), "a") < time.time() + 60
    await lapse(queue, "a")
    assert len(await leases.reclaim("w2", MODEL, [], count=1)) == 1


async def test_a_deadline_ends_a_job_whose_last_worker_died(queue: JobQueue, leases: LeaseQueue) -> None:
    """Only a worker's renewal looked at it: without another worker the job stayed "processing" for good."""
    for name in ("late", "patient"):
        await accept(queue, name, deadline_ms=600_000)
        await take(leases)
    deadlines, held = queue.keys.deadlines_zset, queue.keys.leases_zset(MODEL)
    await queue.redis.zadd(deadlines, {"late": 0})
    await queue.sweep()
    assert (await queue.get("late")).state is JobState.STARTING, "its worker sees the deadline itself"
    assert await queue.redis.zscore(deadlines, "late") == await queue.redis.zscore(held, "late")
    await lapse(queue, "late", "patient")
    await queue.redis.zadd(deadlines, {"late": 0})
    await queue.sweep()
    record = await queue.get("late")
    assert (record.state, record.error and record.error.code) == (JobState.CANCELED, "deadline_exceeded")
    assert (await queue.get("patient")).state is JobState.STARTING
    assert await queue.redis.zscore(deadlines, "late") is None
    [heir] = await reclaimed(leases, "w2")
    assert heir.job_id == "patient"


async def test_a_cancel_before_the_deadline_is_not_a_missed_deadline(queue: JobQueue, leases: LeaseQueue) -> None:
    """A job that its caller had canceled ended with the error deadline_exceeded if its worker died before it heard."""
    await accept(queue, "a", deadline_ms=600_000)
    await take(leases)
    await queue.cancel("a")
    await lapse(queue, "a")
    await queue.redis.zadd(queue.keys.deadlines_zset, {"a": 0})
    await queue.sweep()
    record = await queue.get("a")
    assert (record.state, record.error) == (JobState.CANCELED, None)
