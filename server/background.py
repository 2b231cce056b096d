"""Ending tasks for certain: redis-py can miss a cancellation.

redis-py sends each command under `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that arrives just
as the send has finished (bpo-37658). A task that does nothing but talk to Redis ignored two out of three.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

ASK_AGAIN_S = 0.1


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel, and cancel again, until all have ended. How they ended stays with them: look there for failures."""
    alive = {task for task in tasks if not task.done()}
    while alive:
        for task in alive:
            task.cancel()
        _, alive = await asyncio.wait(alive, timeout=ASK_AGAIN_S)


@asynccontextmanager
async def running(*endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Keep these running while the block runs."""
    tasks = [asyncio.create_task(each) for each in endless]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)
