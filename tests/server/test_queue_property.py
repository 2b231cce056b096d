"""Conservation: whatever workers, crashes and cancellations do, every job ends exactly once."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace

import pytest
from harness import job_input
from hypothesis import given, settings
from hypothesis import strategies as st

from server.connection import connect
from server.embedded import EmbeddedValkey
from server.jobs import JobError, JobState, Lease
from server.queue import Pulse, Queue
from server.settings import Settings

WORKERS = 3
ACTIONS = ("enqueue", "take", "finish", "fail", "give_back", "cancel", "crash", "pulse", "zombie", "steal")
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, WORKERS - 1), st.integers(0, 99)), max_size=40)


class Simulation:
    """Workers without an engine, and a plain-Python account of what they were told."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.accepted: list[str] = []
        self.held: list[list[Lease]] = [[] for _ in range(WORKERS)]
        self.abandoned: list[Lease] = []  #: leases of crashed workers, which may yet come back as zombies
        self.ends: Counter[str] = Counter()

    async def act(self, action: str, worker: int, pick: int) -> None:
        held = self.held[worker]
        match action:
            case "enqueue":
                job_id = f"job{len(self.accepted)}"
                await self.queue.enqueue(job_id, job_input(), "job")
                self.accepted.append(job_id)
            case "take":
                lease = await self.queue.take(f"w{worker}")
                held += [lease] if lease else []
            case "steal":  # as if every lease had just lapsed; the former holders become zombies
                self.queue.lease_ms = 0
                mine = {lease.entry for lease in held}
                held += await self.queue.reclaim(f"w{worker}", mine, count=2)
            case "crash":
                self.abandoned += held
                held.clear()
            case "zombie" if self.abandoned:
                await self._finish(self.abandoned[pick % len(self.abandoned)])
            case "cancel" if self.accepted:
                await self.queue.cancel(self.accepted[pick % len(self.accepted)])
            case "pulse":
                await self.queue.pulse(f"w{worker}", [Pulse(x, True, 1) for x in held], renew=True)
            case "finish" if held:
                await self._finish(held.pop(pick % len(held)))
            case "fail" if held:
                await self.queue.give_back(held.pop(pick % len(held)), error=JobError("e", "m"))
            case "give_back" if held:
                await self.queue.give_back(held.pop(pick % len(held)))

    async def _finish(self, lease: Lease) -> None:
        before = (await self.queue.get(lease.job_id)).state
        wrote = await self.queue.finish(lease, JobState.SUCCEEDED)
        if wrote and not before.terminal:
            self.ends[lease.job_id] += 1

    async def drain(self) -> None:
        """All leases lapse at once; one healthy worker ends what is left."""
        self.queue.lease_ms = 0
        while leases := await self.queue.reclaim("last", set(), count=100):
            for lease in leases:
                await self._finish(lease)
        while lease := await self.queue.take("last"):
            await self._finish(lease)
        while leases := await self.queue.reclaim("last", set(), count=100):
            for lease in leases:
                await self._finish(lease)


async def check(valkey: EmbeddedValkey, script: list[tuple[str, int, int]]) -> None:
    own = Settings(redis_url=valkey.url, namespace=uuid.uuid4().hex)
    async with connect(own.redis_url) as redis:
        queue = Queue(redis, replace(own, max_attempts=3))
        await queue.open()
        world = Simulation(queue)
        for action, worker, pick in script:
            await world.act(action, worker, pick)
            counts = await queue.counts()
            assert sum(counts.states.values()) == len(world.accepted), counts
        await world.drain()
        records = [await queue.get(job_id) for job_id in world.accepted]
        assert all(record.state.terminal for record in records)
        assert max(world.ends.values(), default=0) <= 1
        counts = await queue.counts()
        by_state = Counter(record.state.value for record in records)
        assert by_state == {k: v for k, v in counts.states.items() if v}
        assert counts.dead_letter_depth == by_state["failed"]
        pending = await redis.xpending(queue.keys.jobs_stream, "workers")
        assert (await redis.xlen(queue.keys.jobs_stream), pending["pending"]) == (0, 0)
        keys = [key async for key in redis.scan_iter(f"{{{own.namespace}}}:*", count=1000)]
        await redis.delete(*keys)


@settings(max_examples=60)
@given(script=steps)
def test_every_accepted_job_ends_exactly_once(valkey: EmbeddedValkey, script: list[tuple[str, int, int]]) -> None:
    """A lost, doubled or stuck job in any interleaving of three workers' actions."""
    asyncio.run(check(valkey, script))


@pytest.mark.parametrize("action", ["finish", "cancel", "give_back"])
def test_repeating_an_end_changes_nothing(valkey: EmbeddedValkey, action: str) -> None:
    """Redis clients repeat commands after a lost answer; counters must not move twice."""
    script = [("enqueue", 0, 0), ("take", 0, 0), ("crash", 0, 0), ("zombie", 0, 0), ("zombie", 0, 0)]
    asyncio.run(check(valkey, [*script, (action, 0, 0), ("cancel", 0, 0)]))
