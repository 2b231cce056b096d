"""Measure on this machine what the simulation needs, and what it must predict: two gateways and eight workers.

The workers are fake engines whose steps take a fixed time, so that the processors do not decide. Redis' time is that
of its process, from INFO; enqueue, take and finish share it as their scripts do in `make load`. What Redis does without
jobs is measured with one worker and with eight.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.load.generator import Generator, Sample, poisson, request_bytes
from benchmarks.load.service import Service, machine_s, service
from benchmarks.scaling.simulation import percentile

GATEWAYS, WORKERS, ROWS, STEPS, STEP_MS = 2, 8, 4, 20, 20.0
PER_S, SECONDS, WARM_UP_S, IDLE_S = 56.0, 30.0, 4.0, 10.0  # 70 % of what the workers can do
#: Microseconds of the scripts at 1,000 waiting jobs: benchmarks/results/growth-2026-11-28.json.
SCRIPTS = {"enqueue": 184.8, "take": 198.2, "finish": 217.8}
RESPOND_SHARE = 0.5  # of a gateway's time: reading the result and sending the image


async def measure(quick: bool) -> dict[str, Any]:
    """Return `costs` for measured.json, and `check`: throughput and latencies to compare with the simulation."""
    idle = {workers: await _idle(workers, 2.0 if quick else IDLE_S) for workers in (1, WORKERS)}
    per_worker = max(0.0, (idle[WORKERS] - idle[1]) / (WORKERS - 1))
    seconds = 5.0 if quick else SECONDS
    async with service(WORKERS, GATEWAYS, fake_step_ms=STEP_MS, max_rows=ROWS) as running:
        await _load(running, WARM_UP_S, 0)
        machine = machine_s()
        before, redis = running.cpu_s(), await _redis_s(running)
        began = time.perf_counter()
        samples, elapsed = await _load(running, seconds, 1)
        used = {role: spent - before[role] for role, spent in running.cpu_s().items()}
        redis_us = (await _redis_s(running) - redis) * 1e6
        wall = time.perf_counter() - began
        busy, whole = (now - then for now, then in zip(machine_s(), machine, strict=True))
    count = max(1, len(samples))
    job_us = (redis_us - idle[WORKERS] * wall) / count
    gateway_ms = used["gateway"] * 1000 / count
    scripts = sum(SCRIPTS.values())
    costs = {
        **{f"{name}_us": round(job_us * us / scripts, 1) for name, us in SCRIPTS.items()},
        "worker_us": round(per_worker, 1),
        "gateway_us": round(max(0.0, (idle[WORKERS] - WORKERS * per_worker) / GATEWAYS), 1),
        "accept_ms": round(gateway_ms * (1 - RESPOND_SHARE), 3),
        "respond_ms": round(gateway_ms * RESPOND_SHARE, 3),
    }
    latencies, waits = [each.latency for each in samples], [each.latency - each.inference for each in samples]
    check = {
        "gateways": GATEWAYS, "workers": WORKERS, "rows": ROWS, "steps": STEPS, "step_ms": STEP_MS, "per_s": PER_S,
        "seconds": seconds, "requests": len(samples), "jobs_per_s": round(len(samples) / elapsed, 2),
        "latency_p50_ms": round(percentile(latencies, 50), 1), "latency_p99_ms": round(percentile(latencies, 99), 1),
        "added_p50_ms": round(percentile(waits, 50), 1), "added_p99_ms": round(percentile(waits, 99), 1),
        "measured_step_ms": round(percentile([each.inference for each in samples], 50) / STEPS, 2),
        "worker_cpu_ms": round(used["worker"] * 1000 / count, 2),
        "busy_with_others": round((busy - sum(used.values())) / whole, 2),
    }  # fmt: skip
    return {"costs": costs, "check": check}


async def _idle(workers: int, seconds: float) -> float:
    """Return Redis' microseconds per second without jobs; print what is called how often."""
    async with service(workers, GATEWAYS, fake_step_ms=STEP_MS, max_rows=ROWS) as running:
        await asyncio.sleep(2.0)  # what follows a start
        calls = await running.queue.redis.info("commandstats")
        before, began = await _redis_s(running), time.perf_counter()
        await asyncio.sleep(seconds)
        used = (await _redis_s(running) - before) / (time.perf_counter() - began) * 1e6
        for name, now in (await running.queue.redis.info("commandstats")).items():
            per_s = (now["calls"] - calls.get(name, {"calls": 0})["calls"]) / seconds
            if per_s > 1:
                print(
                    f"idle, {workers} workers: {name[8:]:12s}{per_s:8.1f} calls/s, {now['usec_per_call']:8.1f} us each"
                )
        return used


async def _redis_s(running: Service) -> float:
    info = await running.queue.redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _load(running: Service, seconds: float, seed: int) -> tuple[list[Sample], float]:
    """Send requests to all gateways; return their samples, and the seconds from the first to the last response."""
    request = request_bytes({"prompt": "an apple", "seed": 1, "num_inference_steps": STEPS})
    generators = [Generator(port) for port in running.ports]
    for each in generators:
        await each.open(32)
    began = time.perf_counter()
    runs = await asyncio.gather(*(
        each.run(request, poisson(PER_S / len(generators), seconds, seed=10 * seed + number))
        for number, each in enumerate(generators)
    ))  # fmt: skip
    elapsed = time.perf_counter() - began
    for each in generators:
        each.close()
    failed = sum((sum(run.failed.values()) for run in runs), 0)
    if failed:
        raise RuntimeError(f"{failed} requests failed")
    return [sample for run in runs for sample in run.samples], elapsed
