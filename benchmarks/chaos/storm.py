"""One chaos run: processes, clients and faults together for some minutes, then calm, then the audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx
from tqdm import tqdm

from benchmarks.chaos.audit import audit, settle
from benchmarks.chaos.cast import Cast
from benchmarks.chaos.crowd import Crowd
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.redelivery import Redeliveries
from benchmarks.chaos.report import failures, figures, lateness
from server import background
from server.queue.job_queue import JobQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import HEARTBEAT_S

REQUESTS_PER_S = 8.0
SETTLE_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """`figures` go to the last line of output; `failures` are failed gates, `late` is the failed redelivery gate."""

    figures: dict[str, object]
    failures: list[str]
    late: list[str]
    remarks: list[str]


async def run(minutes: float, seed: int, lease_s: float, data_dir: Path, modes: Collection[str] = ()) -> Outcome:
    """Run clients and faults for `minutes`, then audit. `seed` fixes their order; timing varies with the machine."""
    ledger = Ledger()
    with Cast(data_dir, lease_s, Random(seed), modes) as cast:
        async with connect(cast.settings.redis_url, SOCKET_TIMEOUT_S) as redis:
            queue = JobQueue(redis, cast.settings)
            redeliveries = Redeliveries(cast, queue)
            crowd = Crowd(cast, ledger, Random(seed + 1), REQUESTS_PER_S)
            faults = Faults(cast, queue, redeliveries, ledger, Random(seed + 2), modes)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:  # a failing task ends the run
                background_tasks = [group.create_task(each) for each in (cast.keep_alive(), redeliveries.run())]
                try:
                    await wait_ready(cast)
                    storm = [group.create_task(each) for each in (crowd.run(stop), faults.run(stop))]
                    await _sleep_with_progress(minutes * 60)
                    stop.set()
                    await asyncio.wait(storm)
                    await wait_ready(cast)
                    settled_s = await settle(queue, SETTLE_S)
                    verdict, inconsistent = await audit(ledger, queue, cast.address)
                    scraped = await scrape(cast)
                finally:
                    await background.cancel_and_wait(*background_tasks)
    result: dict[str, object] = {"minutes": minutes, "seed": seed, "lease_s": lease_s, "modes": sorted(modes)}
    result |= figures(verdict, inconsistent, redeliveries.seconds, redeliveries.raw, scraped)
    result |= {
        "client_errors": crowd.errors,
        "kills": dict(cast.kills),
        "unasked_ends": len(cast.unasked),
        "settled_s": round(settled_s, 1),
    }
    histories = [f"{text}{redeliveries.history(text.partition(':')[0])}" for text in verdict.unexpected]
    late = lateness(redeliveries.seconds, lease_s)
    return Outcome(
        result, failures(verdict, inconsistent, cast.unasked, crowd.bugs), late, [*histories, *redeliveries.late]
    )


async def wait_ready(cast: Cast) -> None:
    """Wait until every gateway reports that a worker is ready."""
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as http:
        for port in cast.gateways:
            while not await _is_ready(http, f"http://127.0.0.1:{port}/health/ready"):
                await asyncio.sleep(0.1)


async def _is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx.TransportError:  # not up yet
        return False


async def _sleep_with_progress(seconds: float) -> None:
    """Sleep with a progress bar."""
    end = time.monotonic() + seconds
    with tqdm(total=round(seconds), unit="s", desc="chaos") as bar:
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(1.0, left))
            bar.update(round(seconds - max(0.0, end - time.monotonic())) - bar.n)


async def scrape(cast: Cast) -> str:
    """Fetch /metrics, after the workers' last figures have arrived with their heartbeats."""
    await asyncio.sleep(2 * HEARTBEAT_S)
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"{cast.address()}/metrics")).text
