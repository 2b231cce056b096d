"""What one API key can do to another: latency of a quiet caller, alone and beside one that uses all it is allowed.

Both keys have the same limits. The quiet one sends normal images at a steady rate and counts whole latency, from the
scheduled time to the last byte. The noisy one, a process of its own (noise.py), keeps every limit of its key used up:
jobs, streams, files, batches with metadata, webhooks to endpoints that never answer, lists, and priorities it does not
have. Runs alternate, and the ratio is that of the pooled p99.

The machine's cores are shared with both clients, so `busy_with_others` includes the noise itself.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from benchmarks.chaos.report import percentile
from benchmarks.load.generator import Generator, Run, poisson, request_bytes
from benchmarks.load.service import Service, service
from server.gateway.api_keys import hash_key

KEYS = {"quiet": "fl-quiet", "noisy": "fl-noisy"}
STEPS, STEP_MS, ROWS = 20, 5.0, 16
QUIET_PER_S = 5.0
#: What an operator would set for a machine of this size; the other limits are the defaults.
LIMITS: dict[str, Any] = {
    "max_queue": 1000,
    "rate_limit": 1200,
    "max_jobs": 64,
    "max_key_mib": 64,
    "webhook_secret": "whsec_" + "A" * 43 + "=",
    "webhook_private": "allow",
}


async def noisy_neighbour(quick: bool) -> dict[str, Any]:
    """Return the quiet caller's p50 and p99 in milliseconds, alone and beside the noise, and their ratio."""
    seconds, rounds = (4.0, 1) if quick else (30.0, 3)
    keys = ";".join(f"{name} {hash_key(key)}" for name, key in KEYS.items())
    body = {"prompt": "an apple", "seed": 1, "num_inference_steps": STEPS}
    request = request_bytes(body, KEYS["quiet"])
    alone, beside = Run(), Run()
    did: list[dict[str, int]] = []
    async with service(1, fake_step_ms=STEP_MS, max_rows=ROWS, api_keys=keys, **LIMITS) as running:
        generator = Generator(running.settings.port)
        await generator.open(8)
        await generator.run(request, poisson(QUIET_PER_S, 2.0, seed=9))
        for number in range(rounds):
            _add(alone, await generator.run(request, poisson(QUIET_PER_S, seconds, seed=number)))
            async with _noise(running, did):
                _add(beside, await generator.run(request, poisson(QUIET_PER_S, seconds, seed=number)))
            await _settled(running)
        generator.close()
    p99 = {name: _p(run, 99) for name, run in (("alone", alone), ("beside", beside))}
    return {
        "neighbour_p50_alone_ms": _p(alone, 50),
        "neighbour_p50_beside_ms": _p(beside, 50),
        "neighbour_p99_alone_ms": p99["alone"],
        "neighbour_p99_beside_ms": p99["beside"],
        "neighbour_p99_ratio": round(p99["beside"] / p99["alone"], 2) if p99["alone"] and p99["beside"] else None,
        "neighbour_requests": len(beside.samples),
        "neighbour_failed": beside.failed,
        "noise_per_run": {name: round(statistics.mean(run.get(name, 0) for run in did)) for name in sorted(did[0])},
    }


@asynccontextmanager
async def _noise(running: Service, did: list[dict[str, int]]) -> AsyncIterator[None]:
    """Run the noisy caller beside the block, and add what it did to `did`."""
    command = [sys.executable, "-m", "benchmarks.load.noise", running.settings.base_url, KEYS["noisy"]]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a pipe is missing")
    try:
        await process.stdout.readline()  # it uses its limits by now
        yield
        process.stdin.close()
        did.append(json.loads(await process.stdout.readline()))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _settled(running: Service) -> None:
    """Cancel what the noisy caller left in the queue, and wait until nothing runs."""
    redis, keys = running.queue.redis, running.queue.keys
    for state in ("queued", "running"):
        for job_id in await redis.zrange(keys.state_jobs_zset("noisy", state), 0, -1):
            await running.queue.cancel(job_id)
    while await redis.zcard(keys.state_jobs_zset("noisy", "running")):
        await asyncio.sleep(0.05)


def _add(total: Run, run: Run) -> None:
    total.samples += run.samples
    for status, count in run.failed.items():
        total.failed[status] = total.failed.get(status, 0) + count


def _p(run: Run, percent: float) -> float | None:
    return percentile([sample.latency for sample in run.samples], percent)
