"""Samples of every process of the service and of its Redis, a line of JSON each.

A run that is interrupted is judged by the lines that it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from benchmarks.load.service import Service, cpu_s, rss_mib
from server.jobs import JobState
from server.queue.statistics import queue_counts

SCAN_EVERY_S = 60.0
SCAN_COUNT, SCAN_PAUSE_S = 500, 0.02
SIZES_READ = 20  # keys of one kind whose memory is read


class Recorder:
    """Appends lines to the file of a run."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = time.monotonic()

    def write(self, kind: str, figures: dict[str, Any]) -> None:
        """Write one line, with the seconds since the run began."""
        line = {"kind": kind, "at": round(time.monotonic() - self._began, 2), **figures}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


async def sample_forever(running: Service, recorder: Recorder, every_s: float) -> None:
    """Write a sample at fixed times.

    Raises:
        RuntimeError: a process of the service has exited.
    """
    begin = time.monotonic()
    number = 0
    while True:
        recorder.write("sample", await sample(running))
        number += 1
        await asyncio.sleep(max(0.0, begin + number * every_s - time.monotonic()))


async def count_keys_forever(running: Service, recorder: Recorder) -> None:
    """Write the number of keys by kind now and then."""
    while True:
        recorder.write("keys", await keys_by_kind(running))
        await asyncio.sleep(SCAN_EVERY_S)


async def sample(running: Service) -> dict[str, float]:
    """Read memory, descriptors, threads and processor time of each process, and Redis' keys, memory and jobs."""
    figures: dict[str, float] = {}
    for name, pid in processes(running).items():
        try:
            figures |= {
                f"{name}_rss_mib": round(rss_mib(pid), 2),
                f"{name}_fds": len(os.listdir(f"/proc/{pid}/fd")),
                f"{name}_threads": len(os.listdir(f"/proc/{pid}/task")),
                f"{name}_cpu_s": round(cpu_s(pid), 2),
            }
        except (OSError, IndexError) as error:
            raise RuntimeError(f"The process {name} has exited ({error}).") from error
    info = await running.queue.redis.info()
    keys = info.get("db0", {"keys": 0, "expires": 0})
    counts = await queue_counts(running.queue)
    figures |= {
        "keys": keys["keys"], "keys_without_ttl": keys["keys"] - keys["expires"],
        "used_mib": round(info["used_memory"] / 2**20, 3), "clients": info["connected_clients"],
        "channels": info["pubsub_channels"], "queued": counts.states[JobState.QUEUED.value], "running": counts.running,
        "ended": counts.ended, "succeeded": counts.states[JobState.SUCCEEDED.value],
        "redeliveries": counts.redeliveries, "stored_bytes": counts.stored_bytes,
    }  # fmt: skip
    return figures


def processes(running: Service) -> dict[str, int]:
    """Return the ids of the service's processes by name."""
    workers = {f"worker{number}": worker.pid for number, worker in enumerate(running.workers, 1)}
    return {"gateway": running.gateway.pid, **workers, "valkey": running.valkey.pid}


async def keys_by_kind(running: Service) -> dict[str, Any]:
    """Count all keys by kind, a few at a time, and read the memory that a key of each kind takes, in bytes."""
    redis, root = running.queue.redis, running.queue.keys.root
    counts: Counter[str] = Counter()
    some: dict[str, list[str]] = {}
    cursor = 0
    while True:
        cursor, found = await redis.scan(cursor, count=SCAN_COUNT)
        for key in found:
            kind = key.removeprefix(f"{root}:").split(":")[0]
            counts[kind] += 1
            if len(some.setdefault(kind, [])) < SIZES_READ:
                some[kind].append(key)
        if not cursor:
            break
        await asyncio.sleep(SCAN_PAUSE_S)
    sizes = {}
    for kind, names in some.items():
        read = [size for name in names if (size := await redis.memory_usage(name))]
        sizes[kind] = round(sum(read) / len(read)) if read else 0
    return {"counts": dict(sorted(counts.items())), "bytes": sizes}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a run; the last may be cut off."""
    lines = []
    for text in file.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
