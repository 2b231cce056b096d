"""Work that lies in Redis with a time when it is due, done by whichever gateway comes first."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from prometheus_client import Counter
from redis.exceptions import RedisError

from server.queue import Queue

log = logging.getLogger(__name__)
LOOK_S = 0.5


async def take_turns(
    queue: Queue, name: str, work: Callable[[str], Awaitable[None]], *, hidden_s: float, at_once: int, bugs: Counter
) -> None:
    """For ever. Entries of the list that are handed to `work`, several at a time, are due again after `hidden_s`,
    should their gateway die; `work` moves or removes them. What it fails at is logged, counted and tried again then."""
    while True:
        try:
            due: list[str] = await queue.run("claim", [name, hidden_s, at_once])
            outcomes = await asyncio.gather(*(work(each) for each in due), return_exceptions=True)
        except RedisError as error:
            log.warning("%s: %s", name, error)
            due, outcomes = [], []
        for each, outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, RedisError):
                log.warning("%s: %s: %s", name, each, outcome)
            elif isinstance(outcome, Exception):  # a bug of ours: the others must not wait for it
                bugs.labels(name).inc()
                log.error("%s: %s failed, and will be tried again", name, each, exc_info=outcome)
        if not due:
            await asyncio.sleep(LOOK_S)
