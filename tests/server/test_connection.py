"""The connection pool under a burst."""

import asyncio

import pytest
from harness import accept

from server.connection import CONNECTIONS
from server.queue import Queue


@pytest.mark.anyio
async def test_a_burst_waits_for_connections_and_is_not_refused(queue: Queue) -> None:
    """The client's default pool raised "Too many connections" from the 101st command on: 512 clients got 503s."""
    jobs = [f"burst_{i}" for i in range(5 * CONNECTIONS)]
    await asyncio.gather(*(accept(queue, job_id) for job_id in jobs))
    assert sum((await queue.counts()).waiting.values()) == len(jobs)
