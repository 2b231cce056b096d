"""A canceled task ends, even if its libraries swallow the cancellation."""

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
            # As every background task does between two polls. One without a pause ignored cancellations for 15 s at a
            # time on an idle machine: whenever another task ran, this one was at the end of a send.
            await asyncio.sleep(0.01)

    return talk


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_task_that_talks_to_redis_ends(endless: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Before Python 3.12 redis-py loses a cancellation that comes just after a send: canceling once and waiting could
    take forever. The chaos benchmark hung like that in CI, after a run without a fault."""
    random = Random(7)
    async with asyncio.timeout(60):
        for _ in range(30):
            task = asyncio.create_task(endless())
            await turns(random.randrange(3, 40))
            await cancel_and_wait(task)
            assert task.cancelled()


async def test_a_task_that_swallows_two_cancellations_ends() -> None:
    """The same, deterministic: this task ends at the third cancellation."""
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


async def test_outcomes_stay_in_the_tasks() -> None:
    async def fail() -> None:
        raise ValueError("on its own")

    failed, done = asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(0, "done"))
    await turns(3)
    await cancel_and_wait(failed, done)
    assert isinstance(failed.exception(), ValueError) and done.result() == "done"
