"""Latencies that a single user notices: first preview, one image, cancel; each with its target.

`fluid serve` with the shipped checkpoint and HTTP on loopback, one client, no other requests:

    first partial   time to the first of three previews of a stream, as a share of the wait for the image (<= 35 %)
    overhead        a PNG by POST, minus the engine's own loop for the same image in this process (<= max(2 %, 15 ms))
    cancel          from sending the cancel to the end of the job, when its row is free, in autoregressive steps (<= 1)

Sides alternate; figures are medians over rounds.

It takes a few minutes, and about 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.interactive --quick
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import httpx
from tqdm import tqdm

from benchmarks.machine import command
from benchmarks.served import CHECKPOINT, PROMPT, one_image, service
from model.evaluation.generation import default_sampling
from model.inference.load import load_engine
from server.client import FluidClient
from server.client.results import Preview

ROWS_CANCELED = 10  # the most images of one job
CANCELED_STEPS = 64  # steps of the canceled job: enough that it never ends before the cancel


def first_partial(client: FluidClient, seed: int) -> tuple[float, float]:
    """Stream one image; return (seconds to the first preview, seconds to the image)."""
    begin, first = time.perf_counter(), 0.0
    for event in client.stream(PROMPT, seed=seed, partial_images=3):
        if isinstance(event, Preview):
            first = first or time.perf_counter() - begin
    return first, time.perf_counter() - begin


def cancel(client: FluidClient, seed: int, n: int) -> tuple[float, float]:
    """Cancel a job of n rows; return (seconds from the cancel to the job's end, seconds of one step of its rows).

    The job's times come from the service's clock, so both must be on one machine.
    """
    job = client.submit(PROMPT, seed=seed, n=n, num_inference_steps=CANCELED_STEPS, diffusion_steps=50)
    steps: list[tuple[int, float]] = []
    for event in client.follow(job["id"]):
        if event.type == "progress":
            steps.append((event.data["step"], time.time()))
            if event.data["step"] >= n * CANCELED_STEPS // 3:
                break
    sent = time.time()
    client.cancel(job["id"])
    ended = client.wait(job["id"], poll_s=0.01)
    if ended["status"] != "canceled":
        raise RuntimeError(f"the job {ended['status']} before it could be canceled; increase CANCELED_STEPS")
    (first, at), (last, until) = steps[0], steps[-1]
    return max(0.0, ended["completed_at"] - sent), n * (until - at) / max(1, last - first)


def run(quick: bool) -> dict[str, Any]:
    """Print the table; return the figures."""
    engine = load_engine(CHECKPOINT, 1, "cpu")
    request = replace(default_sampling(engine), prompt=PROMPT)
    shares, waits, over, alone = [], [], [], []
    frees: dict[int, list[float]] = {1: [], ROWS_CANCELED: []}
    steps: dict[int, list[float]] = {1: [], ROWS_CANCELED: []}
    with service() as url, httpx.Client(base_url=url, trust_env=False) as http, FluidClient(url) as client:
        for warm in range(2):
            one_image(http, engine, request, warm)
        for seed in tqdm(range(5 if quick else 40), desc="rounds", leave=False):
            first, whole = first_partial(client, seed)
            shares.append(first / whole)
            waits.append(whole)
            bare, extra = one_image(http, engine, request, seed)
            alone.append(bare)
            over.append(extra)
            for rows in frees:
                freed, step = cancel(client, seed, rows)
                frees[rows].append(freed)
                steps[rows].append(freed / step)
    bare_ms, over_ms = 1000 * statistics.median(alone), 1000 * statistics.median(over)
    result = {
        "first_partial_share": round(statistics.median(shares), 3),
        "stream_ms": round(1000 * statistics.median(waits), 1),
        "single_bare_ms": round(bare_ms, 1),
        "single_overhead_ms": round(over_ms, 1),
        "single_overhead_limit_ms": round(max(0.02 * bare_ms, 15.0), 1),
    }
    for rows, name in ((1, "cancel"), (ROWS_CANCELED, f"cancel_{ROWS_CANCELED}_rows")):
        result[f"{name}_ms"] = round(1000 * statistics.median(frees[rows]), 1)
        result[f"{name}_steps"] = round(statistics.median(steps[rows]), 2)
        result[f"{name}_steps_p90"] = round(statistics.quantiles(steps[rows], n=10)[-1], 2)
    for name, value in result.items():
        print(f"{name:32s}{value:10}")
    return result


def main(argv: list[str] | None = None) -> None:
    command("interactive", __doc__, "five rounds", run, argv)


if __name__ == "__main__":
    main()
