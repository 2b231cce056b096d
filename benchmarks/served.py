"""The service over HTTP against the bare engine: throughput, and the latency of one image.

`fluid serve` with the shipped checkpoint, in real processes with HTTP on loopback, is compared with the engine's own
loop in this process with the same rows. Throughput: enough clients to keep every row busy, against rows that are
refilled at once. One image: a client's wait for a PNG, against admit + steps + pixels. Sides alternate; figures are
medians over rounds.

It takes about 2 minutes, and under 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.served --quick
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
from tqdm import tqdm

from benchmarks.machine import command
from model.evaluation.generation import default_sampling
from model.inference.load import load_engine
from model.inference.requests import Request
from model.inference.serving import ServingEngine
from server.cli.demo import free_port
from server.client import FluidClient

CHECKPOINT = "atlas-128"  # on both sides
ROWS, PROMPT = 16, "a red apple, 3d style"


@contextmanager
def service() -> Iterator[str]:
    """Run a service with ROWS rows, and yield its base URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")}
        env |= {"FLUID_MAX_ROWS": str(ROWS), "FLUID_LOG_LEVEL": "warning", "FLUID_CHECKPOINT": CHECKPOINT}
        command = [sys.executable, "-m", "server.cli", "serve", "--quiet", "--port", str(port), "--data-dir", data]
        process = subprocess.Popen(command, env=env)
        try:
            with FluidClient(f"http://127.0.0.1:{port}") as client:
                client.wait_ready(timeout_s=180)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def fetch(client: httpx.Client, seed: int) -> None:
    """Generate one image over HTTP as a PNG."""
    response = client.post(
        "/v1/images/generations", json={"prompt": PROMPT, "seed": seed}, headers={"Accept": "image/png"}, timeout=300
    )
    response.raise_for_status()


def served_rate(url: str, count: int) -> float:
    """Return images per second with two requests in flight per row."""
    limits = httpx.Limits(max_connections=2 * ROWS)
    with httpx.Client(base_url=url, trust_env=False, limits=limits) as client, ThreadPoolExecutor(2 * ROWS) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda seed: fetch(client, seed), range(count)))
        return count / (time.perf_counter() - begin)


def bare_rate(engine: ServingEngine, request: Request, count: int) -> float:
    """Return images per second of the engine alone, on `count` copies of a request with different seeds."""
    begin, started, running = time.perf_counter(), 0, 0
    while started < count or running:
        room = min(ROWS - running, count - started)
        if room:
            engine.admit([replace(request, seed=started + i) for i in range(room)])
            started, running = started + room, running + room
        for row in engine.step():
            engine.image(row)
            engine.release(row)
            running -= 1
    return count / (time.perf_counter() - begin)


def one_image(client: httpx.Client, engine: ServingEngine, request: Request, seed: int) -> tuple[float, float]:
    """Return (seconds of the engine alone, additional seconds that a client waits) for one image."""
    begin = time.perf_counter()
    fetch(client, seed)
    middle = time.perf_counter()
    bare_rate(engine, request, 1)
    alone = time.perf_counter() - middle
    return alone, middle - begin - alone


def run(quick: bool) -> dict[str, Any]:
    """Print the table; return the figures."""
    engine = load_engine(CHECKPOINT, ROWS, "cpu")
    request = Request(PROMPT, 0, default_sampling(engine))
    count, rounds, singles = (32, 1, 5) if quick else (128, 3, 15)
    shares, served, bare = [], [], []
    with service() as url, httpx.Client(trust_env=False, base_url=url) as client:
        served_rate(url, ROWS)
        bare_rate(engine, request, ROWS)
        for _ in tqdm(range(rounds), desc="full batch", leave=False):
            served.append(served_rate(url, count))
            bare.append(bare_rate(engine, request, count))
            shares.append(served[-1] / bare[-1])
        seeds = tqdm(range(singles), desc="one image", leave=False)
        alone, over = zip(*(one_image(client, engine, request, seed) for seed in seeds), strict=True)
    result = {
        "served_share_of_bare": round(statistics.median(shares), 3),
        "served_images_per_second": round(statistics.median(served), 2),
        "bare_images_per_second": round(statistics.median(bare), 2),
        "single_overhead_ms": round(1000 * statistics.median(over), 1),
        "single_bare_ms": round(1000 * statistics.median(alone), 1),
        "single_overhead_share": round(statistics.median(over) / statistics.median(alone), 4),
    }
    for name, value in result.items():
        print(f"{name:32s}{value:10}")
    return dict(result)


def main(argv: list[str] | None = None) -> None:
    command("served", __doc__, "32 images, one round", run, argv)


if __name__ == "__main__":
    main()
