"""A poller of delayed work in Redis: each due entry is handled by one of the gateways."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable
from contextlib import suppress
from typing import Any, TypeVar

from prometheus_client import Counter
from redis.exceptions import RedisError

from server import background
from server.queue.scripts import QueueConnection

log = logging.getLogger(__name__)
POLL_S = 0.5
E = TypeVar("E", bound=Hashable)
#: Claims up to so many due entries; the second argument are those that run here.
Claim = Callable[[int, Collection[E]], Awaitable[list[E]]]


def claim_from(queue: QueueConnection, entries: str, visibility_timeout_s: float) -> Claim[str]:
    """Claim the due entries of the sorted set `entries`, the earliest first."""

    async def claim(count: int, running: Collection[str]) -> list[str]:
        args = {"entries": entries, "visibility_timeout_s": visibility_timeout_s, "count": count}
        return list(await queue.run("claim_due", args))

    return claim


async def poll_due(
    name: str,
    claim: Claim[E],
    work: Callable[[E], Coroutine[Any, Any, None]],
    *,
    at_once: int,
    bugs: Counter,
) -> None:
    """Claim due entries forever, and run `work` on up to `at_once` of them.

    `work` reschedules or removes its entry. An entry whose gateway dies, or whose `work` fails, becomes due again after
    the visibility timeout of `claim`; failures are logged, and bugs counted in `bugs` under `name`. A slow entry
    occupies its own slot and delays no other.
    """
    running: dict[asyncio.Task[None], E] = {}
    try:
        while True:
            due: list[E] = []
            try:
                if len(running) < at_once:
                    due = await claim(at_once - len(running), running.values())
            except RedisError as error:
                log.warning("%s: %s", name, error)
            for each in due:
                if each not in running.values():  # an entry slower than its visibility timeout is due again
                    running[asyncio.create_task(work(each))] = each
            if not running:
                await asyncio.sleep(POLL_S)
            elif not due:
                await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(0)
            for task in [task for task in running if task.done()]:
                _settle(name, running.pop(task), task, bugs)
    finally:
        ending = asyncio.create_task(background.cancel_and_wait(*running))
        while not ending.done():
            with suppress(asyncio.CancelledError):  # the canceling side repeats its request: background.py
                await asyncio.shield(ending)


def _settle(name: str, each: Hashable, task: asyncio.Task[None], bugs: Counter) -> None:
    outcome = None if task.cancelled() else task.exception()
    if isinstance(outcome, RedisError):
        log.warning("%s: %s: %s", name, each, outcome)
    elif outcome is not None:  # a bug in `work`: the other entries must not wait for it
        bugs.labels(name).inc()
        log.error("%s: %s failed and will be retried", name, each, exc_info=outcome)
