"""Redis' time per operation of the queue, relative to a script whose work never changes, and its commands."""

from __future__ import annotations

from benchmarks.load import backlog
from benchmarks.load.service import service

WAITING = 100
OPERATIONS = ("enqueue", "place", "take", "progress", "finish", "requeue", "cancel", "list")


async def measure() -> dict[str, float]:
    """Return redis_OP, in units of the reference script, and commands_OP."""
    async with service(0) as running:
        await backlog.prepare(running)
        await backlog.fill(running.queue, running.settings, range(WAITING))
        costs = await backlog.costs(running, WAITING)
    unit = costs["reference"].us
    return {
        **{f"redis_{name}": costs[name].us / unit for name in OPERATIONS},
        **{f"commands_{name}": costs[name].commands for name in OPERATIONS},
    }
