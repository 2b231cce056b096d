"""Latency that the service adds to an image, and growth of memory over many requests.

`added` is end to end, from the scheduled time to the last byte of the file, minus the image's time in the engine and in
encoding, as the worker reports them. So HTTP, validation, the durable accept, waking a worker, storing, the durable
finish, the notification and the fetch all count. `gateway` excludes the time between accept and finish; `whole`
excludes nothing.

The main figures use one step per image, which takes no time, and a free row for each image. With 512 connections an
image takes 400 steps of 10 ms plus what 512 rows add to them, so that 100 requests/s keep 512 or more waiting; an image
joins between two steps, and that wait counts. Snapshots are off there: 512 rows would write thousands a second.

`busy_with_others` is the share of the machine's cores that other processes used at the same time.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.chaos.report import percentile
from benchmarks.load.generator import Generator, Run, poisson, request_bytes
from benchmarks.load.service import Service, machine_s, rss_mib, service

BODY: dict[str, Any] = {"prompt": "an apple", "seed": 1, "num_inference_steps": 1}
CONNECTIONS, STEPS, STEP_MS = 512, 400, 10.0
FILL_S = 7.0  # until as many requests end as arrive


async def at_100_per_second(quick: bool) -> dict[str, Any]:
    """Measure the main figures at 100 requests/s, then send as many requests again to see memory stay flat."""
    seconds = 3.0 if quick else 30.0
    async with service(1, fake_step_ms=0.0, max_rows=64) as running:
        generator = Generator(running.settings.port)
        await generator.open(32)
        await generator.run(request_bytes(BODY), poisson(100, 3 if quick else 10, seed=1))
        before, cpu, machine, own = _rss(running), running.cpu_s(), machine_s(), time.process_time()
        run = await generator.run(request_bytes(BODY), poisson(100, seconds))
        used = {role: used - cpu[role] for role, used in running.cpu_s().items()}
        busy, whole = (now - then for now, then in zip(machine_s(), machine, strict=True))
        others = busy - sum(used.values()) - (time.process_time() - own)
        await generator.run(request_bytes(BODY), poisson(100, seconds, seed=2))
        after = _rss(running)
        generator.close()
    result = {
        "added_p50_ms_100rps": _p(run, "added", 50), "added_p99_ms_100rps": _p(run, "added", 99),
        "gateway_p50_ms_100rps": _p(run, "gateway", 50), "gateway_p99_ms_100rps": _p(run, "gateway", 99),
        "whole_p50_ms_100rps": _p(run, "latency", 50), "whole_p99_ms_100rps": _p(run, "latency", 99),
        "parts_p50_ms_100rps": {part: _p(run, part, 50) for part in ("queue", "inference", "encode", "rest")},
        "requests_100rps": len(run.samples), "failed_100rps": run.failed,
        "busy_with_others": round(max(0.0, others) / whole, 2),
        "generator_cpu_share": round(run.cpu_share, 3), "generator_lag_p99_ms": _p(run, "lag", 99),
        "rss_growth_mib": round(sum(after.values()) - sum(before.values()), 1),
        "rss_mib": {role: round(after[role], 1) for role in after},
    }  # fmt: skip
    result |= {f"{role}_cpu_ms_per_request": round(1000 * s / len(run.samples), 2) for role, s in used.items()}
    return result


async def at_512_connections(quick: bool) -> dict[str, Any]:
    """Measure added latency with 512 requests in flight at once, each on its own connection."""
    seconds = FILL_S + (2 if quick else 20)
    body = BODY | {"num_inference_steps": STEPS}
    async with service(1, fake_step_ms=STEP_MS, max_rows=2 * CONNECTIONS, snapshot_steps=0) as running:
        generator = Generator(running.settings.port)
        await generator.open(CONNECTIONS + 64)
        run = await generator.run(request_bytes(body), poisson(100, seconds))
        generator.close()
    run.samples = run.samples[round(100 * FILL_S) :]
    return {
        "added_p50_ms_512c": _p(run, "added", 50), "added_p99_ms_512c": _p(run, "added", 99),
        "gateway_p99_ms_512c": _p(run, "gateway", 99), "peak_in_flight_512c": run.peak_in_flight,
        "requests_512c": len(run.samples), "failed_512c": run.failed,
    }  # fmt: skip


def _p(run: Run, part: str, percent: float) -> float | None:
    return percentile([getattr(sample, part) for sample in run.samples], percent)


def _rss(running: Service) -> dict[str, float]:
    """Return MiB of gateway and worker, without Valkey, which must hold finished images until they expire."""
    return {"gateway": rss_mib(running.gateway.pid), "worker": rss_mib(running.workers[0].pid)}
