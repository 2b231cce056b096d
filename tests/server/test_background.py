"""A canceled task ends, even if its libraries swallow the cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from server import background
from server.background import Crash, Supervisor, cancel_and_wait
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


async def ignore(crash: Crash) -> None:
    pass


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

    async with asyncio.timeout(60), Supervisor(ignore).running({"deaf": deaf}):
        await turns(4)
    assert heard == 3


async def test_outcomes_stay_in_the_tasks() -> None:
    async def fail() -> None:
        raise ValueError("on its own")

    failed, done = asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(0, "done"))
    await turns(3)
    await cancel_and_wait(failed, done)
    assert isinstance(failed.exception(), ValueError) and done.result() == "done"


@pytest.mark.parametrize("death", ["raise", "cancel", "return"])
async def test_a_task_that_dies_is_started_again(
    death: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that raised had simply ended: nothing was logged before the process ended, and nothing did its work."""
    monkeypatch.setattr(background, "BACKOFF_S", (0.01,))
    crashes: list[Crash] = []
    runs = 0

    async def report(crash: Crash) -> None:
        crashes.append(crash)
        raise OSError("reporting must not end the supervisor")

    async def task() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3 and death == "raise":
            raise ZeroDivisionError
        if runs <= 3 and death == "cancel":
            raise asyncio.CancelledError
        if runs > 3:
            await asyncio.Event().wait()

    supervisor = Supervisor(report)
    async with asyncio.timeout(60), supervisor.running({"job": task}):
        while runs < 4:
            assert len(supervisor.failing) == (len(crashes) >= 3)
            await asyncio.sleep(0.001)
        assert [crash.task for crash in supervisor.failing] == ["job"]
        monkeypatch.setattr(background, "STABLE_S", 0.0)
        assert supervisor.failing == []
    assert [crash.in_succession for crash in crashes] == [1, 2, 3]
    errors = {"raise": "ZeroDivisionError", "cancel": "CancelledError", "return": "it returned"}
    assert {crash.error for crash in crashes} == {errors[death]}
    assert death != "raise" or "Traceback" in caplog.text
