"""What the service adds to the engine: python -m benchmarks.served

`fluid serve` with the shipped checkpoint, real processes, HTTP on loopback, against the engine's own loop in this
process with the same rows. Throughput: as many clients as keep every row busy, against rows that are refilled at once.
One picture: a client's wait for a PNG, against admit + steps + pixels. Sides alternate; medians over rounds.
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

CHECKPOINT = "scenes-128"  # on both sides
ROWS, PROMPT = 16, "a red apple, 3d style"


@contextmanager
def service() -> Iterator[str]:
    """Base URL of a running service with ROWS rows."""
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
    """One picture as PNG bytes."""
    answer = client.post(
        "/v1/images/generations", json={"prompt": PROMPT, "seed": seed}, headers={"Accept": "image/png"}, timeout=300
    )
    answer.raise_for_status()


def served_rate(url: str, count: int) -> float:
    """Pictures per second with two requests under way or waiting for every row."""
    limits = httpx.Limits(max_connections=2 * ROWS)
    with httpx.Client(base_url=url, limits=limits) as client, ThreadPoolExecutor(2 * ROWS) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda seed: fetch(client, seed), range(count)))
        return count / (time.perf_counter() - begin)


def bare_rate(engine: ServingEngine, ask: Request, count: int) -> float:
    """The same pictures from the engine alone."""
    begin, started, running = time.perf_counter(), 0, 0
    while started < count or running:
        room = min(ROWS - running, count - started)
        if room:
            engine.admit([replace(ask, seed=started + i) for i in range(room)])
            started, running = started + room, running + room
        for row in engine.step():
            engine.image(row)
            engine.release(row)
            running -= 1
    return count / (time.perf_counter() - begin)


def one_picture(client: httpx.Client, engine: ServingEngine, ask: Request, seed: int) -> tuple[float, float]:
    """(seconds of the engine alone, seconds that a client waits longer)"""
    begin = time.perf_counter()
    fetch(client, seed)
    middle = time.perf_counter()
    bare_rate(engine, ask, 1)
    alone = time.perf_counter() - middle
    return alone, middle - begin - alone


def run(quick: bool) -> dict[str, Any]:
    """Table to stdout; figures back."""
    engine = load_engine(CHECKPOINT, ROWS, "cpu")
    ask = Request(PROMPT, 0, default_sampling(engine))
    count, rounds, singles = (32, 1, 5) if quick else (128, 3, 15)
    shares, served, bare = [], [], []
    with service() as url, httpx.Client(base_url=url) as client:
        served_rate(url, ROWS)
        bare_rate(engine, ask, ROWS)
        for _ in tqdm(range(rounds), desc="full batch", leave=False):
            served.append(served_rate(url, count))
            bare.append(bare_rate(engine, ask, count))
            shares.append(served[-1] / bare[-1])
        seeds = tqdm(range(singles), desc="one picture", leave=False)
        alone, over = zip(*(one_picture(client, engine, ask, seed) for seed in seeds), strict=True)
    result = {
        "served_share_of_bare": round(statistics.median(shares), 3),
        "served_pictures_per_second": round(statistics.median(served), 2),
        "bare_pictures_per_second": round(statistics.median(bare), 2),
        "single_overhead_ms": round(1000 * statistics.median(over), 1),
        "single_bare_ms": round(1000 * statistics.median(alone), 1),
        "single_overhead_share": round(statistics.median(over) / statistics.median(alone), 4),
    }
    for name, value in result.items():
        print(f"{name:32s}{value:10}")
    return dict(result)


def main(argv: list[str] | None = None) -> None:
    command("served", __doc__, "32 pictures, one round", run, argv)


if __name__ == "__main__":
    main()
