"""Processor time that gateway, worker and Valkey take for an image, in milliseconds.

Requests arrive in rounds of a second, and a round ends with its last response. The figures are quartiles over rounds:
unlike latencies they hardly change when other processes use the same cores. Once with images of one step that costs
nothing, once with images of 32 steps of 40 ms, of which eight a second keep ten rows busy.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.load.generator import Generator, poisson, request_bytes
from benchmarks.load.service import Service, service

CASES = {"60rps": (60.0, 1, 0.0), "32_steps": (8.0, 32, 40.0)}  # requests/s, steps, milliseconds of a step
WARM_UP_S = 4.0


async def per_image(quick: bool) -> dict[str, Any]:
    """Measure cpu_ms_per_image_CASE by role, with their sum."""
    figures = {}
    for name, (rate, steps, step_ms) in CASES.items():
        async with service(1, fake_step_ms=step_ms, max_rows=64) as running:
            rounds = await _rounds(running, rate, steps, 5 if quick else 15)
        quartile = {role: round(statistics.quantiles(times, n=4)[0], 2) for role, times in rounds.items()}
        figures[f"cpu_ms_per_image_{name}"] = quartile
    return figures


async def _rounds(running: Service, rate: float, steps: int, count: int) -> dict[str, list[float]]:
    """Return the milliseconds per image of each round, by role."""
    processes = {"gateway": running.gateway, "worker": running.workers[0], "valkey": running.valkey}
    request = request_bytes({"prompt": "an apple", "seed": 1, "num_inference_steps": steps})
    times: dict[str, list[float]] = {role: [] for role in (*processes, "sum")}
    generator = Generator(running.settings.port)
    await generator.open(32)
    await generator.run(request, poisson(rate, WARM_UP_S))
    for number in range(count):
        before = {role: cpu_ms(process.pid) for role, process in processes.items()}
        run = await generator.run(request, poisson(rate, 1.0, seed=number + 1))
        used = {role: cpu_ms(process.pid) - before[role] for role, process in processes.items()}
        for role, spent in {**used, "sum": sum(used.values())}.items():
            times[role].append(spent / max(1, len(run.samples)))
    generator.close()
    return times


def cpu_ms(pid: int) -> float:
    """Return the processor time of a process's threads so far, which /proc/PID/stat counts in steps of 10 ms only."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6
