"""Run background tasks and cancel them reliably: redis-py can swallow a cancellation.

redis-py sends each command under `asyncio.wait_for`, which before Python 3.12 loses a cancellation that arrives just
as the send has finished (bpo-37658). A task that does nothing but talk to Redis ignored two cancellations of three.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

RETRY_S = 0.1


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks repeatedly until all have ended. The caller can still read their exceptions from them."""
    alive = {task for task in tasks if not task.done()}
    while alive:
        for task in alive:
            task.cancel()
        _, alive = await asyncio.wait(alive, timeout=RETRY_S)


@asynccontextmanager
async def running(*endless: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the coroutines in the background while the block runs, and cancel them when it ends."""
    tasks = [asyncio.create_task(each) for each in endless]
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)
