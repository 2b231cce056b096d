"""Work that lies in Redis with a time when it is due, done by whichever gateway comes first."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from redis.exceptions import RedisError

from server.queue import Queue

log = logging.getLogger(__name__)
LOOK_S = 0.5


async def take_turns(
    queue: Queue, name: str, work: Callable[[Sequence[str]], Awaitable[object]], *, hidden_s: float, at_once: int
) -> None:
    """For ever. Entries of the list that are handed to `work` are due again after `hidden_s`, should their gateway die;
    `work` moves or removes them."""
    while True:
        try:
            due = await queue.run("claim", [name, hidden_s, at_once])
            if due:
                await work(due)
        except RedisError as error:
            log.warning("%s: %s", name, error)
            due = []
        if not due:
            await asyncio.sleep(LOOK_S)
