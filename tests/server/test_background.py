"""A task that is told to end ends, whatever its libraries make of that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from server.background import cancel_and_wait, running
from server.queue.job_queue import JobQueue

pytestmark = pytest.mark.anyio


@pytest.fixture
def endless(queue: JobQueue) -> Callable[[], Coroutine[Any, Any, None]]:
    async def talk() -> None:
        while True:
            await queue.redis.ping()
            # As all of ours do between two looks. One that never rested was deaf for 15 s at a time on an idle machine:
            # whenever anything else had its turn, the task was at the end of a send.
            await asyncio.sleep(0.01)

    return talk


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_task_that_talks_to_redis_ends(endless: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Before Python 3.12 redis-py forgets a cancellation that comes just after a send; whoever asked once and then
    waited did so for ever. The chaos benchmark hung like that in CI, after a run without a fault."""
    random = Random(7)
    async with asyncio.timeout(60):
        for _ in range(30):
            task = asyncio.create_task(endless())
            await turns(random.randrange(3, 40))
            await cancel_and_wait(task)
            assert task.cancelled()


async def test_deaf_once_or_twice() -> None:
    """The same without luck: this one needs three."""
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1

    async with asyncio.timeout(10), running(deaf()):
        await turns(2)
    assert heard == 3


async def test_how_a_task_ended_stays_with_it() -> None:
    async def fail() -> None:
        raise ValueError("on its own")

    failed, done = asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(0, "done"))
    await turns(3)
    await cancel_and_wait(failed, done)
    assert isinstance(failed.exception(), ValueError) and done.result() == "done"
