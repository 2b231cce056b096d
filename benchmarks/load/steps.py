"""The worker's own time per AR step: how much longer an image of many steps takes than one of a single step, if steps
cost nothing.

On a GPU whose step takes a few milliseconds, time between two steps is time in which the GPU idles.
"""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.load.generator import Generator, request_bytes
from benchmarks.load.service import service

STEPS = (1, 64, 512)


async def own_time(quick: bool) -> dict[str, Any]:
    """Measure latency_ms_N_steps, the median of alternating requests, and from it own_us_per_step."""
    rounds = 5 if quick else 30
    times: dict[int, list[float]] = {steps: [] for steps in STEPS}
    async with service(1, fake_step_ms=0.0, max_rows=16) as running:
        generator = Generator(running.settings.port)
        await generator.open(1)
        for _ in range(rounds + 2):
            for steps in STEPS:
                body = {"prompt": "an apple", "seed": 1, "num_inference_steps": steps}
                [sample] = (await generator.run(request_bytes(body), [0.0])).samples
                times[steps].append(sample.latency)
        generator.close()
    medians = {steps: statistics.median(values[2:]) for steps, values in times.items()}  # the first two warm up
    first, last = STEPS[0], STEPS[-1]
    own_us = 1000 * (medians[last] - medians[first]) / (last - first)
    latencies = {f"latency_ms_{steps}_steps": round(medians[steps], 2) for steps in STEPS}
    return latencies | {"own_us_per_step": round(own_us, 1)}
