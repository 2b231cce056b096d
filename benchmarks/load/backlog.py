"""Cost of each operation of the queue inside Redis, by the number of waiting jobs, and the memory that one takes.

Time and number of commands come from INFO commandstats, which counts also the commands that scripts run: the time of a
call is that of the commands sent by the client, and its commands are all of them, also those within. Neither has the
network, the disk or Python in it. Times are the least of many short runs. A script whose work never changes runs
beside every round, and growth is relative to it: the machine's speed is not part of it. No worker runs, so that the
jobs keep waiting; they belong to a fixed number of API keys, because the cost of a place in the queue depends on their
number (200 of them are read at most).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.load.service import Service, service
from benchmarks.load.throughput import job
from server.gateway import pagination
from server.jobs import JobInput, JobState, Lease
from server.model_info import ModelInfo
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.queue.redis_client import Client
from server.queue.registry import Registry
from server.queue.statistics import queue_counts
from server.settings import Settings
from server.worker.engine.fake import FakeEngine

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (100, 2_000)
OWNERS = 16
CALLS, ROUNDS = 50, 6  # of each operation at each size
CALLS_READ = 5  # so few that most are not interrupted: what is interrupted by another process takes longer
FILL_AT_ONCE = 500
OWN = ("cmdstat_config", "cmdstat_info")  # commands of the measurement
SCRIPTS = ("eval", "evalsha")
STEPS = 8
REFERENCE = """
for i = 1, 20 do redis.call('HSET', KEYS[1], i, i) end
for i = 1, 20 do redis.call('HGET', KEYS[1], i) end
return cjson.encode({redis.call('HLEN', KEYS[1])})
"""


@dataclass(frozen=True)
class Cost:
    """Cost of one call inside Redis."""

    us: float
    commands: float


async def by_size(quick: bool) -> dict[str, Any]:
    """Measure microseconds and commands of each operation at each size, bytes per waiting job, and growth.

    growth_of_OP is the time at the largest size by that at the smallest, both relative to the reference script.
    """
    sizes = QUICK_SIZES if quick else SIZES
    figures: dict[str, Any] = {}
    seen: dict[int, dict[str, Cost]] = {}
    async with service(0, max_queue=2 * sizes[-1]) as running:
        await prepare(running)
        empty, count = await _memory(running), 0
        for size in sizes:
            await fill(running.queue, running.settings, range(count, size))
            count = size
            figures[f"bytes_per_waiting_job_at_{size}"] = round((await _memory(running) - empty) / size)
            seen[size] = await costs(running, size)
    for name in seen[sizes[0]]:
        for size in sizes:
            figures[f"{name}_us_at_{size}"] = round(seen[size][name].us, 1)
        figures[f"{name}_commands"] = [round(seen[size][name].commands, 2) for size in sizes]
        first, last = (seen[size][name].us / seen[size]["reference"].us for size in (sizes[0], sizes[-1]))
        figures[f"growth_of_{name}"] = round(last / first, 2)
    return figures


async def prepare(running: Service) -> None:
    """Make the fake model known although no worker runs, and leave the disk out."""
    info = ModelInfo.from_mapping(FakeEngine(1, 0.0).info())
    await Registry(running.queue.redis, running.settings.namespace).publish_model(info)
    await running.queue.redis.config_set("appendonly", "no")  # a million jobs would fill it


async def fill(queue: JobQueue, settings: Settings, numbers: range) -> None:
    """Enqueue jobs with these numbers, of the API keys in turn, many in one round trip."""
    jobs = [_owned(i) for i in range(OWNERS)]
    written = _Written(queue.redis, settings)
    await queue.enqueue(Submission(f"waiting_{numbers[0]}", jobs[numbers[0] % OWNERS], "job"))  # loads the script
    for start in range(numbers.start + 1, numbers.stop, FILL_AT_ONCE):
        async with queue.redis.pipeline(transaction=False) as pipe:
            for number in range(start, min(numbers.stop, start + FILL_AT_ONCE)):
                await written.enqueue(Submission(f"waiting_{number}", jobs[number % OWNERS], "job"))
                pipe.execute_command(*written.calls.pop())
            answers = await pipe.execute()
        refused = [answer for answer in answers if answer[0] != "new"]
        if refused:
            raise RuntimeError(f"a job was not accepted: {refused[0]}")


class _Written(JobQueue):
    """A queue that writes its calls down instead of sending them."""

    def __init__(self, redis: Client, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.calls: list[tuple[Any, ...]] = []

    async def run(self, name: str, args: Mapping[str, Any], *data: bytes, replicated: bool = False) -> Any:
        given = {key: value for key, value in args.items() if value is not None}
        self.calls.append(("EVALSHA", self._scripts[name].sha, 1, self.keys.root, json.dumps(given), *data))
        return ["new", args["id"], "0"]


def _owned(number: int) -> JobInput:
    return replace(job(STEPS), owner=f"key{number}")


async def _memory(running: Service) -> int:
    return int((await running.queue.redis.info("memory"))["used_memory"])


class _Meter:
    """Reads what calls cost inside Redis, and collects it by operation."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._seen: dict[str, list[Cost]] = {}

    async def measure(self, name: str, calls: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
        """Make the calls one after another; return what they return."""
        results = []
        for begin in range(0, len(calls), CALLS_READ):
            some = calls[begin : begin + CALLS_READ]
            await self._redis.config_resetstat()
            results += [await call() for call in some]
            stats = await self._redis.info("commandstats")
            used = {key.removeprefix("cmdstat_"): value for key, value in stats.items() if not key.startswith(OWN)}
            # Commands within a script have their own lines, and their time is also in the script's.
            scripts = [used[name] for name in SCRIPTS if name in used]
            us = sum(value["usec"] for value in scripts or used.values())
            commands = sum(value["calls"] for command, value in used.items() if command not in SCRIPTS)
            self._seen.setdefault(name, []).append(Cost(us / len(some), commands / len(some)))
        return results

    def least(self) -> dict[str, Cost]:
        """Return the least time of each operation, and the median of its commands."""
        return {
            name: Cost(min(cost.us for cost in seen), statistics.median(cost.commands for cost in seen))
            for name, seen in self._seen.items()
        }


async def costs(running: Service, size: int) -> dict[str, Cost]:
    """Measure every operation at about `size` waiting jobs, which are as many afterwards."""
    queue, leases = running.queue, LeaseQueue(running.queue.redis, running.settings)
    meter, probe = _Meter(queue.redis), _owned(0)
    scratch = f"{queue.keys.root}:reference"
    for round_ in range(ROUNDS):
        ids = [f"probe_{size}_{round_}_{i}" for i in range(CALLS)]
        await meter.measure("reference", [partial(queue.redis.eval, REFERENCE, 1, scratch)] * CALLS)
        await meter.measure("enqueue", [partial(queue.enqueue, Submission(id_, probe, "job")) for id_ in ids])
        records = await meter.measure("get", [partial(queue.get, id_) for id_ in ids])
        await meter.measure("place", [partial(queue.place, record) for record in records])
        page = partial(pagination.page, queue, probe.owner, limit=20, after=None, status=None)
        await meter.measure("list", [page] * 5)
        await meter.measure("counts", [partial(queue_counts, queue)] * 5)
        taken: list[Lease | None] = await meter.measure("take", [partial(leases.take, "bench", probe.model)] * CALLS)
        held = [lease for lease in taken if lease is not None]
        progress = [partial(leases.renew, [LeaseRenewal(lease, True, 1)], extend=True) for lease in held]
        await meter.measure("progress", progress)
        half = len(held) // 2
        await meter.measure("requeue", [partial(leases.requeue, lease) for lease in held[:half]])
        await meter.measure("finish", [partial(leases.finish, lease, JobState.FAILED) for lease in held[half:]])
        await meter.measure("cancel", [partial(queue.cancel, id_) for id_ in ids[half:]])
        for id_ in ids[:half]:
            record = await queue.get(id_)
            if not record.state.terminal:
                await queue.cancel(id_)
    await queue.redis.delete(scratch)
    return meter.least()
