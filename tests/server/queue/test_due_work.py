"""The poller of due work: a bug or a slow entry is visible, and stops nothing else."""

import asyncio
import time
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter

from server import background
from server.queue.due_work import claim_from, poll_due
from server.queue.job_queue import JobQueue
from tests.server.harness import until_async

pytestmark = pytest.mark.anyio


async def test_a_bug_in_one_entry_neither_ends_the_poller_nor_blocks_other_entries(
    queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception once ended the background task silently: no batch advanced and no webhook was sent until
    the gateway was restarted."""
    entries = queue.keys.batches_zset
    bugs = Counter("bugs", "", ("task",), registry=CollectorRegistry())
    seen: list[str] = []

    async def work(name: str) -> None:
        seen.append(name)
        if name == "bad":
            raise KeyError("unexpected")
        await queue.redis.zrem(entries, name)

    await queue.redis.zadd(entries, {"bad": 0, "good": 1})
    task = asyncio.create_task(poll_due("batches", claim_from(queue, entries, 0.05), work, at_once=4, bugs=bugs))
    try:
        await until_async(lambda: _true(seen.count("bad") >= 2 and "good" in seen))
        await queue.redis.zadd(entries, {"later": time.time() - 1})
        await until_async(lambda: _true("later" in seen))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert bugs.labels("batches")._value.get() >= 2
    assert any("bad failed" in record.getMessage() and record.exc_info for record in caplog.records)


async def test_a_slow_entry_blocks_no_other(queue: JobQueue) -> None:
    """The poller used to wait for a whole round before the next: one slow webhook endpoint stopped all webhooks."""
    entries = queue.keys.batches_zset
    bugs = Counter("bugs", "", ("task",), registry=CollectorRegistry())
    never, begun, ended = asyncio.Event(), [], []

    async def work(name: str) -> None:
        begun.append(name)
        if name == "slow":
            try:
                await never.wait()
            finally:
                ended.append(name)
        await queue.redis.zrem(entries, name)

    await queue.redis.zadd(entries, {"slow": 0})
    task = asyncio.create_task(poll_due("batches", claim_from(queue, entries, 0.05), work, at_once=2, bugs=bugs))
    try:
        await until_async(lambda: _true("slow" in begun))
        for name in ("a", "b", "c"):
            await queue.redis.zadd(entries, {name: time.time()})
            await until_async(lambda name=name: _true(name in begun))
    finally:
        await background.cancel_and_wait(task)
    assert begun.count("slow") == 1, "it became due again while it ran, and was started twice"
    assert ended == ["slow"], "it outlived its gateway"


async def _true(value: bool) -> bool:
    return value


async def test_entries_of_a_clock_that_was_set_back_are_due(queue: JobQueue) -> None:
    """A batch whose next turn was set while Redis' clock was ahead rested until that clock came round."""
    entries, claim = queue.keys.batches_zset, claim_from(queue, queue.keys.batches_zset, 15.0)
    now = (await queue.redis.time())[0]
    await queue.redis.zadd(entries, {"ahead": now + 3600, "claimed": now + 14, "inf": "+inf"})
    assert sorted(await claim(10, ())) == ["ahead", "inf"]
    assert await claim(10, ()) == []  # both are claimed now
