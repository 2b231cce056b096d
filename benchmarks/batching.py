"""Continuous against static batching: throughput and latency under Poisson arrivals with mixed settings.

All sides serve the same trace on the same engine with the same rows.

    continuous    rows join and leave between steps, as in the worker
    static        a batch starts when it is full or its oldest request has waited 50 ms; no row joins until it is done,
                  and all responses leave together. Its rows share one set of settings, padded to the slowest: the most
                  steps, the most diffusion steps, guidance if any row uses it. A handler around generate() does this
    static_free   the same on our engine's rows: each has its own settings, and a finished row costs nothing. No plain
                  generate() can do that; it isolates the value of joining and leaving

The clock is virtual: each step is run and timed for real, and the clock skips idle time. So a trace of minutes takes
only its busy time, and the load is exact. Sides alternate; figures are medians over rounds.

It takes about 2 minutes, and under 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.batching --quick
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.machine import command
from model.inference.load import load_engine
from model.inference.requests import Request, Sampling
from model.inference.serving import ServingEngine

ROWS, TIMEOUT_S, LOADS = 8, 0.05, (0.5, 0.8)
PROMPTS = ("a red apple, 3d style", "cat, flat style", "rocket, noto style", "a castle, twemoji style")


@dataclass(frozen=True)
class Arrival:
    """A request and its arrival time in seconds."""

    at: float
    request: Request


def make_trace(count: int, rate: float, seed: int) -> list[Arrival]:
    """Make `count` requests of mixed settings that arrive at `rate` per second (infinite: all at once)."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, count) if np.isfinite(rate) else np.zeros(count)
    requests = [
        Request(
            PROMPTS[i % len(PROMPTS)], i,
            Sampling(int(rng.choice([8, 16, 32])), int(rng.choice([12, 25, 50])), float(rng.choice([1.0, 3.0]))),
        )
        for i in range(count)
    ]  # fmt: skip
    return [Arrival(float(at), request) for at, request in zip(np.cumsum(gaps), requests, strict=True)]


def continuous(engine: ServingEngine, trace: list[Arrival]) -> list[float]:
    """Serve the trace with continuous batching; return each request's completion time in the order of the trace."""
    waiting, running, done, clock = deque(enumerate(trace)), dict[int, int](), [0.0] * len(trace), 0.0
    while waiting or running:
        if not running:
            clock = max(clock, waiting[0][1].at)
        begin = time.perf_counter()
        while waiting and waiting[0][1].at <= clock and len(running) < ROWS:
            index, arrival = waiting.popleft()
            running[engine.admit([arrival.request])[0]] = index
        finished = engine.step()
        for row in finished:
            engine.image(row)
            engine.release(row)
        clock += time.perf_counter() - begin
        for row in finished:
            done[running.pop(row)] = clock
    return done


def static_padded(engine: ServingEngine, trace: list[Arrival]) -> list[float]:
    """Serve one batch at a time, all rows with the slowest settings among them; see `continuous`."""
    return static(engine, trace, pad=True)


def _padded(batch: list[Request]) -> list[Request]:
    slowest = {
        name: max(getattr(request.sampling, name) for request in batch)
        for name in ("num_inference_steps", "diffusion_steps", "guidance_scale")
    }
    return [replace(request, sampling=replace(request.sampling, **slowest)) for request in batch]


def static(engine: ServingEngine, trace: list[Arrival], pad: bool = False) -> list[float]:
    """Serve one batch at a time, with or without padding settings to the slowest; see `continuous`."""
    waiting, done, clock = deque(enumerate(trace)), [0.0] * len(trace), 0.0
    while waiting:
        full = waiting[ROWS - 1][1].at if len(waiting) >= ROWS else float("inf")
        clock = max(clock, min(full, waiting[0][1].at + TIMEOUT_S))
        batch = []
        while waiting and waiting[0][1].at <= clock and len(batch) < ROWS:
            batch.append(waiting.popleft())
        begin = time.perf_counter()
        requests = [arrival.request for _, arrival in batch]
        rows = engine.admit(_padded(requests) if pad else requests)
        running = set(rows)
        while running:
            running -= set(engine.step())
        for row in rows:
            engine.image(row)
            engine.release(row)
        clock += time.perf_counter() - begin
        for index, _ in batch:
            done[index] = clock
    return done


def run(quick: bool) -> dict[str, Any]:
    """Print the table; return the figures."""
    engine = load_engine("atlas-128", ROWS, "cpu")
    count, rounds = (16, 1) if quick else (40, 2)
    sides = {"continuous": continuous, "static": static_padded, "static_free": static}
    continuous(engine, make_trace(ROWS, float("inf"), 99))  # first use of each shape is slower
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in tqdm(range(rounds), desc="saturation", leave=False):
        trace = make_trace(count, float("inf"), round_)
        for name, side in sides.items():
            rates[name].append(count / max(side(engine, trace)))
    result: dict[str, Any] = {}
    for name in ("static", "static_free"):
        ratio = statistics.median(a / b for a, b in zip(rates["continuous"], rates[name], strict=True))
        result[f"continuous_over_{name}_throughput"] = round(ratio, 3)
    print(f"{'load':>8s} {'side':12s}{'images/s':>12s}{'p50 s':>9s}{'p99 s':>9s}")
    for name in sides:
        result[f"{name}_images_per_second"] = round(statistics.median(rates[name]), 2)
        print(f"{'all':>8s} {name:12s}{result[f'{name}_images_per_second']:12.2f}")
    capacity = statistics.median(rates["continuous"])
    for load in LOADS:
        latencies: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in tqdm(range(rounds), desc=f"load {load}", leave=False):
            trace = make_trace(count, load * capacity, 10 + round_)
            for name, side in sides.items():
                done = side(engine, trace)
                latencies[name] += [end - arrival.at for end, arrival in zip(done, trace, strict=True)]
        for name, values in latencies.items():
            p50, p99 = np.percentile(values, [50, 99])
            print(f"{load:8.1f} {name:12s}{load * capacity:12.2f}{p50:9.2f}{p99:9.2f}")
            result |= {f"{name}_p50_s_load_{load}": round(p50, 3), f"{name}_p99_s_load_{load}": round(p99, 3)}
    for name in ("static", "static_free"):
        print(f"continuous over {name}: {result[f'continuous_over_{name}_throughput']:.2f}x the images per second")
    return result


def main(argv: list[str] | None = None) -> None:
    command("batching", __doc__, "16 requests, one round", run, argv)


if __name__ == "__main__":
    main()
