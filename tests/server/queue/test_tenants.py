"""What one API key may take of what all share: places in the queue, lines of batches, memory, pending webhooks."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from server.errors import QueueFull, RateLimited
from server.errors.limits import MIB
from server.jobs import JobState, Output
from server.queue.job_queue import RECORD_BYTES, JobQueue, Submission
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.queue.registry import Registry
from server.queue.statistics import queue_counts, usage_by_owner
from server.settings import Settings
from tests.server.harness import MODEL, job_input, take

pytestmark = pytest.mark.anyio
PIXELS = 32 * 32 * 3


async def submit(queue: JobQueue, name: str, owner: str, kind: str = "job", **changes: object) -> None:
    await queue.enqueue(Submission(name, job_input(owner=owner, **changes), kind))


async def flood(
    queue: JobQueue, owner: str, count: int, kind: str = "job", prefix: str = "", **changes: object
) -> Counter[str]:
    """Submit at once; count what became of it."""

    async def one(number: int) -> str:
        try:
            await submit(queue, f"{prefix}{owner}_{kind}_{number}", owner, kind, **changes)
        except (RateLimited, QueueFull) as error:
            return error.code
        return "accepted"

    return Counter(await asyncio.gather(*(one(number) for number in range(count))))


async def stored(queue: JobQueue) -> tuple[dict[str, int], int]:
    by_owner = {usage.owner: usage.stored_bytes for usage in await usage_by_owner(queue)}
    return by_owner, (await queue_counts(queue)).stored_bytes


async def test_a_remembered_idempotency_key_takes_memory(queue: JobQueue) -> None:
    """Keys of 255 characters stay for a day; counted nowhere, canceled jobs with ever new ones filled Redis."""
    for number in range(3):
        job = Submission(f"a{number}", job_input(owner="ann"), "job", key=f"{number:0255}")
        await queue.enqueue(job)
        await queue.enqueue(job)  # a repetition adds none
    await submit(queue, "b", "bob")
    by_owner, total = await stored(queue)
    assert by_owner["ann"] - 3 * by_owner["bob"] == 3 * (512 + 255) and total == sum(by_owner.values())
    for name in await queue.redis.zrange(queue.keys.stored_zset, 0, -1):
        await queue.redis.zadd(queue.keys.stored_zset, {name: 1})
    await queue.sweep()
    assert (await stored(queue))[0]["ann"] == 3 * by_owner["bob"]
    queue.memory_limits["max_key_bytes"] = 3 * by_owner["bob"] + by_owner["bob"] + 100
    await submit(queue, "c", "ann")
    await queue.cancel("c")
    with pytest.raises(RateLimited):
        await queue.enqueue(Submission("d", job_input(owner="ann"), "job", key="k"))


async def test_five_batches_leave_places_to_others(queue: JobQueue) -> None:
    """5 batches of 64 lines filled a queue of 200: another tenant got 3 of 25 jobs in."""
    queue.limits |= {"max_queue": 200, "max_batch_lines": 10_000}
    for batch in range(5):
        await flood(queue, "ann", 64, "batch", prefix=f"b{batch}_")
    assert (await flood(queue, "ann", 100))["accepted"] == 0
    assert await flood(queue, "bob", 25) == {"accepted": 25}
    waiting = (await queue_counts(queue)).states["queued"]
    assert waiting == 125, "ann has half of the places, bob what he wants"


async def test_every_further_key_finds_a_place(queue: JobQueue) -> None:
    """A fixed share would let two keys fill the queue."""
    queue.limits["max_queue"] = 64
    taken = [(await flood(queue, f"key{n}", 100))["accepted"] for n in range(5)]
    assert taken == [32, 16, 8, 4, 2]
    assert (await flood(queue, "last", 1))["accepted"] == 1


async def test_a_share_of_one_is_no_limit_and_without_keys_there_are_no_shares(queue: JobQueue) -> None:
    queue.limits["max_queue"] = 10
    assert await flood(queue, "", 12) == {"accepted": 10, "queue_full": 2}
    queue.limits |= {"max_queue": 20, "queue_share": 1}
    assert await flood(queue, "ann", 12) == {"accepted": 10, "queue_full": 2}


async def test_the_refusal_names_share_limit_and_remedy(queue: JobQueue) -> None:
    queue.limits["max_queue"] = 2
    await submit(queue, "a", "ann")
    with pytest.raises(RateLimited, match=r"1 jobs of 'ann' wait. Of the 2 places .*FLUID_QUEUE_SHARE"):
        await submit(queue, "b", "ann")


async def test_lines_in_progress_are_limited_per_key(queue: JobQueue, leases: LeaseQueue) -> None:
    """Each batch had 64 lines of its own, however many batches a key had."""
    queue.limits["max_batch_lines"] = 8
    assert await flood(queue, "ann", 20, "batch") == {"accepted": 8, "rate_limit_exceeded": 12}
    assert await flood(queue, "bob", 1, "batch") == {"accepted": 1}
    assert await flood(queue, "ann", 1) == {"accepted": 1}, "other jobs have a limit of their own"
    lease = await take(leases)
    assert await leases.finish(lease, JobState.SUCCEEDED)
    owner = lease.input.owner
    assert (await flood(queue, owner, 3, "batch", prefix="more"))["accepted"] == (1 if owner == "ann" else 3)
    for name in await queue.redis.zrange(queue.keys.jobs_zset("ann"), 0, -1):
        await queue.cancel(name)
    assert await queue.redis.hget(queue.keys.open_jobs_hash, "ann batch fake") is None


async def test_bytes_are_counted_until_they_are_gone(queue: JobQueue, leases: LeaseQueue) -> None:
    """Nothing bounded the memory of Redis: jobs reserve what their images take at most, then count what they take."""
    source = b"s" * 5000
    job = job_input(owner="ann", n=2, result_ttl_s=1)
    await queue.enqueue(Submission("edit", job, "sync", source=source))
    text = len(job.to_json())
    reserved = RECORD_BYTES + text + 5000 + 2 * PIXELS
    assert await stored(queue) == ({"ann": reserved}, reserved)
    lease = await take(leases)
    await leases.store_preview(lease, 0, 0, b"p" * 100)
    await leases.store_preview(lease, 0, 0, b"p" * 70)
    outputs = [Output(i, 7, 32, 32, "png", 10 + i, "sha", lease.token) for i in range(2)]
    await leases.finish(lease, JobState.SUCCEEDED, outputs=outputs, files={0: b"x" * 10, 1: b"x" * 11})
    kept = RECORD_BYTES + text + 70 + 21
    assert await stored(queue) == ({"ann": kept}, kept)
    await queue.redis.zadd(queue.keys.ended_zset, {(await queue.redis.zrange(queue.keys.ended_zset, 0, 0))[0]: 1})
    await queue.sweep()
    assert await stored(queue) == ({}, 0)
    assert await queue.redis.zcard(queue.keys.state_jobs_zset("ann", "succeeded")) == 0


async def test_a_key_that_has_used_its_memory_is_told_which_limit(queue: JobQueue) -> None:
    queue.memory_limits["max_key_bytes"] = 3 * (RECORD_BYTES + PIXELS)
    with pytest.raises(RateLimited, match=r"'ann' take .* MiB.*FLUID_MAX_KEY_MIB.*Delete files") as caught:
        for number in range(4):
            await submit(queue, f"a{number}", "ann")
    assert caught.value.retry_after_s
    await submit(queue, "b", "bob")
    await submit(queue, "c", "")
    queue.memory_limits["max_bytes"] = 1
    for owner in ("bob", ""):
        with pytest.raises(QueueFull, match=r"all callers .*FLUID_MAX_MIB"):
            await submit(queue, f"d{owner}", owner)


async def test_the_total_follows_maxmemory_unless_it_is_set(queue: JobQueue, settings: Settings) -> None:
    """What is not counted, and what workers still have to write, needs the rest."""
    queue.set_maxmemory(400 * MIB)
    assert queue.memory_limits["max_bytes"] == 300 * MIB
    own = JobQueue(queue.redis, replace(settings, max_mib=7))
    own.set_maxmemory(400 * MIB)
    assert own.memory_limits["max_bytes"] == 7 * MIB


async def test_pending_webhooks_are_limited_per_key(queue: JobQueue) -> None:
    """Webhooks to a dead endpoint stay for four days, whatever becomes of their jobs."""
    queue.limits["max_webhooks"] = 2
    for number in range(2):
        await submit(queue, f"a{number}", "ann", webhook="https://dead.example/")
        await queue.cancel(f"a{number}")
    with pytest.raises(RateLimited, match="FLUID_MAX_WEBHOOKS") as caught:
        await submit(queue, "a2", "ann", webhook="https://dead.example/")
    assert caught.value.param == "webhook"
    await submit(queue, "a3", "ann")
    await submit(queue, "b", "bob", webhook="https://dead.example/")


async def test_usage_names_every_owner(queue: JobQueue, leases: LeaseQueue) -> None:
    registry = Registry(queue.redis, queue.keys.namespace)
    await registry.report_streams("gateway a", {"ann": 3})
    await registry.report_streams("gateway b", {"ann": 1, "bob": 2})
    assert await registry.streams() == {"ann": 4, "bob": 2}
    for number in range(2):
        await submit(queue, f"a{number}", "ann", webhook="https://dead.example/")
    await take(leases)
    [usage] = await usage_by_owner(queue)
    assert (usage.owner, usage.waiting, usage.running, usage.webhooks) == ("ann", 1, 1, 0)
    await queue.cancel("a1")
    [usage] = await usage_by_owner(queue)
    assert (usage.waiting, usage.webhooks) == (0, 1)


async def served(leases: LeaseQueue, count: int) -> list[str]:
    return [(await take(leases)).job_id for _ in range(count)]


async def grow_old(queue: JobQueue, priority: str) -> None:
    """Let all jobs of a class have waited longer than FLUID_AGEING_S."""
    since = queue.keys.waiting_since_zset(MODEL, priority)
    await queue.redis.zadd(since, dict.fromkeys(await queue.redis.zrange(since, 0, -1), 1))


async def test_an_old_flood_goes_before_no_fresh_job(queue: JobQueue, leases: LeaseQueue) -> None:
    """After FLUID_AGEING_S a whole backlog was in the class high, and another key's job waited for all of it."""
    for number in range(30):
        await submit(queue, f"noisy{number}", "noisy")
        await submit(queue, f"line{number}", "noisy", "batch", priority="low")
    for _ in range(3):
        await grow_old(queue, "normal")
        await grow_old(queue, "low")
        await take(leases)
    await submit(queue, "quiet", "quiet")
    assert "quiet" in await served(leases, 2)


async def test_a_class_below_high_does_not_starve(queue: JobQueue, leases: LeaseQueue) -> None:
    """What ageing is for: jobs of high that never end hold up the others for FLUID_AGEING_S, and no longer."""
    for number in range(20):
        await submit(queue, f"vip{number}", "vip", priority="high")
    for number in range(2):
        await submit(queue, f"ann{number}", "ann")
        await submit(queue, f"bob{number}", "bob", priority="low")
    assert await served(leases, 2) == ["vip0", "vip1"]
    await grow_old(queue, "normal")
    await grow_old(queue, "low")
    soon = await served(leases, 4)
    assert "ann0" in soon and {name for name in soon if name.startswith("vip")}
    await grow_old(queue, "normal")
    assert {"ann0", "ann1", "bob0"} <= {*soon, *await served(leases, 6)}


@pytest.mark.parametrize("damage", ["x", "", "nan", "inf", "-5", "1.5", "1e300", b"\x80"])
async def test_damaged_counts_of_bytes_stop_nothing(queue: JobQueue, leases: LeaseQueue, damage: str | bytes) -> None:
    """Arithmetic with one of them would fail every script that meets it: no job of the owner could start or end."""
    await submit(queue, "a", "ann")
    await queue.redis.hset(queue.keys.stored_bytes_hash, "ann", damage)
    await queue.redis.hset(queue.keys.counters_hash, "stored_bytes", damage)
    await queue.redis.hset(queue.keys.job_hash("a"), mapping={"bytes": damage, "reserved_bytes": damage})
    queue.memory_limits |= {"max_key_bytes": 1 << 40, "max_bytes": 1 << 40}
    await submit(queue, "b", "ann")
    for _ in range(2):
        lease = await take(leases)
        await leases.store_preview(lease, 0, 0, b"p")
        assert await leases.finish(lease, JobState.SUCCEEDED)
    assert (await usage_by_owner(queue))[0].stored_bytes >= 0
    await queue.redis.zadd(queue.keys.stored_zset, {"odd": 0, "odd ann x": 0})
    await queue.sweep()
    assert await queue.redis.zcard(queue.keys.stored_zset) == 0


async def test_a_model_without_a_worker_takes_no_places_of_another(queue: JobQueue) -> None:
    """10,000 jobs that waited for one model refused all others, and 256 lines of a key held up its other batches."""
    queue.limits |= {"max_queue": 10, "max_batch_lines": 3}
    assert await flood(queue, "ann", 5, "batch", prefix="o", model="other") == {"accepted": 3, "rate_limit_exceeded": 2}
    assert await flood(queue, "ann", 5, "batch") == {"accepted": 3, "rate_limit_exceeded": 2}
    assert (await flood(queue, "ann", 9, prefix="o", model="other"))["accepted"] == 2, "her share of its 10 places"
    assert await flood(queue, "", 9, model="other") == {"accepted": 5, "queue_full": 4}
    assert (await flood(queue, "bob", 9))["accepted"] == 4
    with pytest.raises(QueueFull, match="10 jobs are waiting for other, the limit is 10"):
        await submit(queue, "x", "bob", model="other")
    with pytest.raises(RateLimited, match=r"4 jobs of 'bob' wait\. Of the 10 places for fake"):
        await submit(queue, "x", "bob")


async def test_the_events_of_a_job_count_as_what_they_take(queue: JobQueue, leases: LeaseQueue) -> None:
    """Redis reserves the first block of a stream whole: a job with 3 events was charged 192 bytes of 4,400."""
    await queue.enqueue(Submission("job_1", job_input(owner="ann"), "job", follow_events=True))
    lease = await take(leases)
    await leases.renew([LeaseRenewal(lease, running=True, step=step) for step in range(1, 400)], extend=False)
    before, _ = await stored(queue)
    taken = await queue.redis.memory_usage(queue.keys.events_stream("job_1"), samples=0)
    await leases.finish(lease, JobState.CANCELED)
    charged = (await stored(queue))[0]["ann"] - before["ann"] + PIXELS
    assert taken <= charged <= 1.5 * taken
