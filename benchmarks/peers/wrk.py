"""Load from outside: wrk with load.lua, closed loop or at a rate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.servers.work import PATH

INSTALL = "wrk generates the load and is not installed: apt-get install wrk (Debian, Ubuntu) or brew install wrk."
SCRIPT = Path(__file__).with_name("load.lua")
TIMEOUT_S = 120
#: At a rate, a connection waits for its next request. Servers close connections that are idle for 5 s.
IDLE_S = 2.0
FEWEST, MOST = 16, 256  # connections at a rate


@dataclass(frozen=True)
class Length:
    """A run ends once it has lasted `seconds` and seen as many responses, or after `most_s`."""

    seconds: int
    responses: int = 0
    most_s: int = 60


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw."""

    images_per_s: float  # slope of their count over time, which whole batches do not distort
    p50_ms: float
    p99_ms: float
    images: int
    seconds: float
    failed: int  # status of 400 or more, connections lost or refused, answers later than TIMEOUT_S
    late_ms: float  # at a rate: the longest time that a request left after its schedule, for want of a connection


def closed(port: int, callers: int, steps: Sequence[int], length: Length, seed: int = 0) -> Load:
    """Let each of `callers` send its next request as soon as it has its image."""
    return _run(port, callers, steps, 0.0, length, seed)


def paced(port: int, rate: float, steps: Sequence[int], length: Length, seed: int = 0) -> Load:
    """Send requests at times of a Poisson process, `rate` a second, whatever the earlier ones do."""
    return _run(port, min(max(round(rate * IDLE_S), FEWEST), MOST), steps, rate, length, seed)


def _run(port: int, connections: int, steps: Sequence[int], rate: float, length: Length, seed: int) -> Load:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{length.most_s}s", "--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT)]
    arguments = [",".join(map(str, steps)), str(rate), str(seed), str(length.seconds), str(length.responses)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{PATH}", "--", *arguments], capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        raise RuntimeError(f"wrk failed with {done.returncode}: {done.stderr or done.stdout}")
    seen = json.loads(last)
    images = seen["responses"] - seen["status"]
    return Load(
        images_per_s=seen["per_s"],
        p50_ms=seen["p50_ms"],
        p99_ms=seen["p99_ms"],
        images=images,
        seconds=seen["seconds"],
        failed=sum(seen[kind] for kind in ("status", "connect", "read", "write", "timeout")),
        late_ms=seen["late_ms"],
    )
