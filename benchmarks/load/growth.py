"""Throughput by number of workers whose steps take a fixed time, so that the processors do not decide.

A step is long enough that all processes together need less than half of the cores, which `busy_N_workers` shows.
Images leave in bursts of as many as share their steps, so the rate is the slope of their count over the times that
Redis recorded, not a count within some seconds. Numbers of workers alternate over the rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.load.service import Service, machine_s, service
from benchmarks.load.throughput import fill, job

ROWS, STEPS, STEP_MS = 4, 20, 60.0
IDEAL_PER_S = ROWS / (STEPS * STEP_MS / 1000)
WORKERS, QUICK_WORKERS = (1, 2, 4, 8), (1, 2)
SECONDS, QUICK_SECONDS = 20.0, 6.0
WARM_UP_S = 3.0
LINEAR = 0.05  # loss by the largest number of workers that is allowed


async def by_workers(quick: bool) -> dict[str, Any]:
    """Return linear_N_workers, the images/s by N times those of one worker, and what it is made of."""
    rates: dict[int, list[float]] = {}
    busy: dict[int, float] = {}
    for round_ in range(1 if quick else 3):
        numbers = QUICK_WORKERS if quick else WORKERS
        for workers in numbers if round_ % 2 == 0 else reversed(numbers):
            rate, busy[workers] = await _rate(workers, QUICK_SECONDS if quick else SECONDS)
            rates.setdefault(workers, []).append(rate)
    per_s = {workers: statistics.median(seen) for workers, seen in sorted(rates.items())}
    return {
        **{f"fixed_step_images_per_s_{n}_workers": round(rate, 2) for n, rate in per_s.items()},
        **{f"fixed_step_share_of_ideal_{n}_workers": round(rate / IDEAL_PER_S / n, 3) for n, rate in per_s.items()},
        **{f"linear_{n}_workers": round(rate / (n * per_s[1]), 3) for n, rate in per_s.items()},
        **{f"busy_{n}_workers": round(busy[n], 2) for n in per_s},
    }


async def _rate(workers: int, seconds: float) -> tuple[float, float]:
    """Return images/s from a backlog that never runs empty, and the share of the cores that the service used."""
    async with service(workers, fake_step_ms=STEP_MS, max_rows=ROWS) as running:
        began, cpu, machine = time.time(), running.cpu_s(), machine_s()
        await fill(running, job(STEPS), round(IDEAL_PER_S * workers * (seconds + WARM_UP_S) * 1.5), "job_")
        await _wait_until(running, began + WARM_UP_S + seconds)
        used = sum(running.cpu_s().values()) - sum(cpu.values())
        whole = machine_s()[1] - machine[1]
        expires = await running.queue.redis.zrange(running.queue.keys.ended_zset, 0, -1, withscores=True)
        ended = sorted(at - running.settings.result_ttl_s for _, at in expires)
    return slope([at for at in ended if at > began + WARM_UP_S]), used / whole


async def _wait_until(running: Service, at: float) -> None:
    seconds, micros = await running.queue.redis.time()
    await asyncio.sleep(max(0.0, at - seconds - micros / 1e6))


def slope(times: Sequence[float]) -> float:
    """Return events per second by least squares of their number over their time, which bursts hardly distort."""
    return 1 / statistics.linear_regression(range(len(times)), times).slope
