"""Processor time and memory of all processes of one side, read from /proc."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.load.service import cpu_s, rss_mib

MARK = "BENCH_SIDE"  # environment variable of every process of a side; finds those that left the tree

KILL_S = 5.0


def family(roots: Iterable[int], mark: str) -> set[int]:
    """Return the ids of the running processes that descend from `roots` or carry the mark."""
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, IndexError, ValueError):
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state == "Z":
                continue
            children.setdefault(int(parent), []).append(int(folder.name))
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    waiting = [*roots, *found]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += [child for child in children.get(pid, ()) if child not in found]
    return {pid for pid in found if Path(f"/proc/{pid}").exists()}


def used_cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """Return the processor time of each process so far, in seconds."""
    used = {}
    for pid in pids:
        with suppress(OSError, IndexError):
            used[pid] = cpu_s(pid)
    return used


def memory_mib(pids: Iterable[int]) -> float:
    """Return the sum of the processes' resident memory; pages that they share count once for each."""
    total = 0.0
    for pid in pids:
        with suppress(OSError, IndexError):
            total += rss_mib(pid)
    return total


def kill_all(pids: Callable[[], set[int]]) -> None:
    """Kill the processes that `pids` returns, again and again until none of them runs."""
    end = time.monotonic() + KILL_S
    while (left := {pid for pid in pids() if _runs(pid)}) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
