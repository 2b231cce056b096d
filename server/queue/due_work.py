"""Work that lies in Redis with a time when it is due, done by whichever gateway comes first."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from prometheus_client import Counter
from redis.exceptions import RedisError

from server import background
from server.queue.scripts import QueueConnection

log = logging.getLogger(__name__)
LOOK_S = 0.5


async def poll_due(
    queue: QueueConnection,
    name: str,
    work: Callable[[str], Coroutine[Any, Any, None]],
    *,
    visibility_timeout_s: float,
    at_once: int,
    bugs: Counter,
) -> None:
    """For ever. Entries of the list that are handed to `work`, several at a time, are due again after `hidden_s`,
    should their gateway die; `work` moves or removes them. What it fails at is logged, counted and tried again then.
    A slow one holds up its own place and no other."""
    running: dict[asyncio.Task[None], str] = {}
    try:
        while True:
            due: list[str] = []
            try:
                if len(running) < at_once:
                    due = await queue.run("claim", [name, visibility_timeout_s, at_once - len(running)])
            except RedisError as error:
                log.warning("%s: %s", name, error)
            for each in due:
                if each not in running.values():  # one that is slower than `hidden_s` is due again
                    running[asyncio.create_task(work(each))] = each
            if not running:
                await asyncio.sleep(LOOK_S)
            elif not due:
                await asyncio.wait(running, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)
            for task in [task for task in running if task.done()]:
                _settle(name, running.pop(task), task, bugs)
    finally:
        ending = asyncio.create_task(background.end(*running))
        while not ending.done():
            with suppress(asyncio.CancelledError):  # who ends us asks again and again (cancellation.py)
                await asyncio.shield(ending)


def _settle(name: str, each: str, task: asyncio.Task[None], bugs: Counter) -> None:
    outcome = None if task.cancelled() else task.exception()
    if isinstance(outcome, RedisError):
        log.warning("%s: %s: %s", name, each, outcome)
    elif outcome is not None:  # a bug of ours: the others must not wait for it
        bugs.labels(name).inc()
        log.error("%s: %s failed, and will be tried again", name, each, exc_info=outcome)
