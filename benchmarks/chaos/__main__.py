"""Chaos: make chaos MINUTES=30 SEED=1, or python -m benchmarks.chaos --minutes 3

A real Valkey, a gateway and three workers with the fake engine take about 12 requests a second while workers, gateway
and Valkey are killed, frozen past their lease, drained and paused at random. Then everything gets time to finish, and
the books are checked: every accepted job in exactly one terminal state, every picture the one its request must have.
Exit status 0 if nothing was lost or duplicated and 99 % of redeliveries took at most a lease and a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from benchmarks.chaos.cast import Cast
from benchmarks.chaos.crowd import Crowd
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.ledger import Ledger
from server.connection import PATIENT_TIMEOUT_S, connect
from server.queue import Queue

REQUESTS_PER_S, SETTLE_S = 12.0, 120.0
LIMITS = httpx.Limits(max_connections=None)


async def run(minutes: float, seed: int, data_dir: Path) -> dict[str, Any]:
    """The whole run; the figures of the last line."""
    random, cast, ledger = Random(seed), Cast(data_dir), Ledger()
    cast.open()
    try:
        async with (
            connect(cast.valkey.url, PATIENT_TIMEOUT_S) as redis,
            httpx.AsyncClient(base_url=cast.settings.base_url, timeout=60, limits=LIMITS) as http,
        ):
            queue = Queue(redis, cast.settings)
            keeper = asyncio.create_task(cast.keep_alive())
            await _ready(http)
            crowd = Crowd(http, ledger, Random(seed + 1), REQUESTS_PER_S)
            faults = Faults(cast, queue, random)
            stop = asyncio.Event()
            storm = asyncio.gather(crowd.send_until(stop), faults.until(stop))
            await _clock(minutes * 60, storm)
            stop.set()
            await storm
            settled_s = await _settle(ledger, queue)
            verdict = await ledger.judge(queue, http)
            scraped = (await http.get("/metrics")).text
            keeper.cancel()
    finally:
        cast.close()
    redelivery = np.percentile(faults.redelivery_s, [50, 99]) if faults.redelivery_s else np.full(2, np.nan)
    for problem in (*verdict.lost, *verdict.duplicates, *verdict.ordinary_failed):
        print(problem, file=sys.stderr)
    return {
        "minutes": minutes, "seed": seed, "submitted": len(ledger.accepted), "sent": len(ledger.entries),
        **{state: verdict.states[state] for state in ("succeeded", "failed", "canceled", "aborted")},
        "ordinary_failed": len(verdict.ordinary_failed),
        "lost": len(verdict.lost), "duplicates": len(verdict.duplicates),
        "redelivery_p50_s": round(float(redelivery[0]), 2), "redelivery_p99_s": round(float(redelivery[1]), 2),
        "redeliveries": len(faults.redelivery_s), "resumed_rows": _total(scraped, "fluid_resumed_rows_total"),
        "fenced_results": _total(scraped, "fluid_lease_lost_total"), "kills": cast.kills,
        "settled_s": round(settled_s, 1), "lease_s": cast.settings.lease_s,
    }  # fmt: skip


async def _ready(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if (await http.get("/health/ready")).is_success:
                    return
            except httpx.TransportError:
                pass  # no gateway yet
            await asyncio.sleep(0.1)


async def _clock(seconds: float, storm: asyncio.Future[Any]) -> None:
    """Show the time pass; stop early only if the storm itself fails."""
    end = time.monotonic() + seconds
    with tqdm(total=round(seconds), unit="s", desc="chaos") as bar:
        while (left := end - time.monotonic()) > 0:
            if storm.done():
                await storm
            await asyncio.sleep(min(1.0, left))
            bar.update(round(seconds - max(0.0, end - time.monotonic())) - bar.n)


async def _settle(ledger: Ledger, queue: Queue) -> float:
    """Seconds until every accepted job had ended, or the patience for it."""
    began = time.monotonic()
    while time.monotonic() - began < SETTLE_S:
        await ledger.find_unknown(queue)
        if not await ledger.unfinished(queue):
            break
        await asyncio.sleep(0.5)
    return time.monotonic() - began


def _total(scraped: str, name: str) -> int:
    return round(sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", scraped, re.M)))


def passed(result: dict[str, Any]) -> bool:
    """The gates."""
    late = result["redeliveries"] and result["redelivery_p99_s"] > result["lease_s"] + 1
    return not (result["lost"] or result["duplicates"] or late)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1, help="of faults and requests; timing still varies")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fluid-chaos-") as folder:
        result = asyncio.run(run(args.minutes, args.seed, Path(folder)))
    for name, value in result.items():
        print(f"{name:20s}{value}")
    print("gates: " + ("passed" if passed(result) else "FAILED"))
    print(json.dumps(result))
    return 0 if passed(result) else 1


if __name__ == "__main__":
    sys.exit(main())
