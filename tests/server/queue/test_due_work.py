"""Turns of gateways with what lies in Redis: a bug in one of them is seen, and stops nothing else."""

import asyncio
import time
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry, Counter

from server import background
from server.queue.due_work import poll_due
from server.queue.job_queue import JobQueue
from tests.server.harness import until_async

pytestmark = pytest.mark.anyio


async def test_a_bug_in_one_turn_neither_ends_the_task_nor_holds_up_the_others(
    queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody foresaw ended the background task silently: no batch moved, and no webhook was sent,
    until the gateway was restarted."""
    entries = queue.keys.batches_zset
    bugs = Counter("bugs", "", ("task",), registry=CollectorRegistry())
    turns: list[str] = []

    async def work(name: str) -> None:
        turns.append(name)
        if name == "bad":
            raise KeyError("nobody foresaw this")
        await queue.redis.zrem(entries, name)

    await queue.redis.zadd(entries, {"bad": 0, "good": 1})
    task = asyncio.create_task(
        poll_due(queue, "batches", entries, work, visibility_timeout_s=0.05, at_once=4, bugs=bugs)
    )
    try:
        await until_async(lambda: _true(turns.count("bad") >= 2 and "good" in turns))
        await queue.redis.zadd(entries, {"later": time.time() - 1})
        await until_async(lambda: _true("later" in turns))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert bugs.labels("batches")._value.get() >= 2
    assert any("bad failed" in record.getMessage() and record.exc_info for record in caplog.records)


async def test_a_slow_one_holds_up_nothing_else(queue: JobQueue) -> None:
    """A whole turn was waited for before the next: one slow webhook endpoint stopped the webhooks of everybody."""
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
    task = asyncio.create_task(
        poll_due(queue, "batches", entries, work, visibility_timeout_s=0.05, at_once=2, bugs=bugs)
    )
    try:
        await until_async(lambda: _true("slow" in begun))
        for name in ("a", "b", "c"):
            await queue.redis.zadd(entries, {name: time.time()})
            await until_async(lambda name=name: _true(name in begun))
    finally:
        await background.cancel_and_wait(task)
    assert begun.count("slow") == 1, "it was due again while it ran, and was begun twice"
    assert ended == ["slow"], "it went on without its gateway"


async def _true(value: bool) -> bool:
    return value
