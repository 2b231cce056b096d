"""The position of a waiting job against the order in which jobs are taken."""

import asyncio
import uuid

import hypothesis.strategies as st
from hypothesis import given, settings

from server.jobs import PRIORITIES
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.settings import Settings
from tests.server.harness import MODEL, job_input


async def _positions_hold(valkey: EmbeddedValkey, arrivals: list[tuple[str, str]], taken: int) -> None:
    own = Settings(redis_url=valkey.url, namespace=uuid.uuid4().hex)
    async with connect(own.redis_url, SOCKET_TIMEOUT_S) as redis:
        queue, leases = JobQueue(redis, own), LeaseQueue(redis, own)
        for i, (priority, caller) in enumerate(arrivals):
            if i == len(arrivals) // 2:  # serve some callers before the rest arrives
                for _ in range(taken):
                    await leases.take("w", MODEL)
            await queue.enqueue(Submission(f"job{i}", job_input(priority=priority, user=caller), "job"))
        records = [await queue.get(f"job{i}") for i in range(len(arrivals))]
        expected_order = {r.id: place.position for r in records if (place := await queue.place(r))}
        taken_order = {}
        while lease := await leases.take("w", MODEL):
            taken_order[lease.job_id] = len(taken_order)
        assert expected_order == taken_order
        await redis.delete(*[key async for key in redis.scan_iter(f"{queue.keys.root}:*", count=1000)])


@settings(max_examples=60)
@given(
    arrivals=st.lists(st.tuples(st.sampled_from(PRIORITIES), st.sampled_from("abcd")), min_size=1, max_size=25),
    taken=st.integers(0, 8),
)
def test_positions_match_the_order_of_takes(
    valkey: EmbeddedValkey, arrivals: list[tuple[str, str]], taken: int
) -> None:
    """With jobs of equal size the position must be exact: every caller would notice an estimate."""
    asyncio.run(_positions_hold(valkey, arrivals, taken))
