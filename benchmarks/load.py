"""What the service costs beside the engine: make load, or python -m benchmarks.load --quick

Real gateway, workers and Valkey; the fake engine with steps of no length, one step a picture, so that what is left is
the service. Requests go through keep-alive connections of this process, which speaks just enough HTTP to be cheap.

Added latency = what a client waits − the time between the queue's scripts, accept and finish, which the answer tells.
Open loop: requests leave on schedule, whatever became of earlier ones, and their latency counts from the schedule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import numpy as np

from benchmarks.machine import describe_machine, keep
from server import processes
from server.connection import PATIENT_TIMEOUT_S, connect
from server.demo import free_port
from server.embedded import EmbeddedValkey
from server.fake_engine import FakeEngine
from server.jobs import JobInput, ModelInfo
from server.queue import Queue
from server.registry import Registry
from server.resolve import resolve
from server.schemas import ImageRequest
from server.settings import Settings

BODY = {"prompt": "an apple", "seed": 1, "num_inference_steps": 1, "response_format": "url"}


class Connection:
    """One keep-alive HTTP/1.1 connection that posts the same body again and again."""

    def __init__(self, port: int):
        self.port, self.lock = port, asyncio.Lock()
        body = json.dumps(BODY).encode()
        self.request = (
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )

    async def open(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def post(self) -> float:
        """Seconds that the job itself took, by the answer. Raises RuntimeError for anything but a 200."""
        async with self.lock:
            self.writer.write(self.request)
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await self.reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answer: {head.splitlines()[0].decode()} {body[:200].decode()}")
        took: float = json.loads(body)["metrics"]["total_time"]
        return took


@asynccontextmanager
async def service(data_dir: Path, workers: int) -> AsyncIterator[tuple[Settings, Popen[bytes]]]:
    """A gateway and so many workers, ready; yields the gateway's process too."""
    with EmbeddedValkey(data_dir) as valkey:
        settings = Settings(
            redis_url=valkey.url, engine="fake", port=free_port(), fake_step_ms=0.0, max_rows=64, max_queue=200_000,
            log_level="error",
        )  # fmt: skip
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | settings.to_env()
        roles = ["gateway"] + ["worker"] * workers
        running = [processes.spawn([sys.executable, "-m", "server.cli", role], env=env, quiet=True) for role in roles]
        try:
            async with httpx.AsyncClient(base_url=settings.base_url) as http:
                await _ready(http, workers)
            yield settings, running[0]
        finally:
            for process in running:
                await processes.stop_async(process, grace_s=10)


async def _ready(http: httpx.AsyncClient, workers: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                scraped = (await http.get("/metrics")).text
                if len(re.findall(r"^fluid_worker_up\{[^}]*\} 1", scraped, re.M)) == workers:
                    return
            except httpx.TransportError:
                pass  # no gateway yet
            await asyncio.sleep(0.1)


async def open_loop(
    connections: Sequence[Connection], per_second: float, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """(added latency, end to end latency) of each request in ms; Poisson arrivals."""
    rng, began = np.random.default_rng(0), time.perf_counter() + 0.1
    schedule = np.cumsum(rng.exponential(1 / per_second, int(per_second * seconds)))
    rows: list[tuple[float, float]] = []

    async def one(at: float, connection: Connection) -> None:
        took = await connection.post()
        latency = time.perf_counter() - began - at
        rows.append((latency - took, latency))

    tasks = []
    for i, at in enumerate(schedule):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(at, connections[i % len(connections)])))
    await asyncio.gather(*tasks)
    added, whole = 1000 * np.array(rows).T
    return added, whole


async def closed_loop(connections: Sequence[Connection], seconds: float) -> float:
    """Pictures per second with every connection always waiting for one."""
    end, done = time.perf_counter() + seconds, 0

    async def loop(connection: Connection) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await connection.post()
            done += 1

    await asyncio.gather(*(loop(connection) for connection in connections))
    return done / seconds


async def connected(port: int, count: int) -> list[Connection]:
    return [await Connection(port).open() for _ in range(count)]


def rss_mib(process: Popen[bytes]) -> float:
    """Resident memory."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


async def latency(quick: bool) -> dict[str, float]:
    """Added latency at 100 requests/s on 32 and on 512 open connections, and what the gateway's memory does."""
    seconds = 3.0 if quick else 20.0
    with tempfile.TemporaryDirectory() as folder:
        async with service(Path(folder), 1) as (settings, gateway):
            few, many = await connected(settings.port, 32), await connected(settings.port, 512)
            await open_loop(few, 100, 2)
            own, wall = time.process_time(), time.perf_counter()
            added, whole = await open_loop(few, 100, seconds)
            share = (time.process_time() - own) / (time.perf_counter() - wall)
            before = rss_mib(gateway)
            added_many, _ = await open_loop(many, 100, seconds)
            await closed_loop(few, seconds)
            growth = rss_mib(gateway) - before
    return {
        "added_p50_ms_100rps": _round(added, 50), "added_p99_ms_100rps": _round(added, 99),
        "added_p99_ms_512c": _round(added_many, 99), "whole_p50_ms_100rps": _round(whole, 50),
        "whole_p99_ms_100rps": _round(whole, 99), "generator_cpu_share": round(share, 3),
        "rss_growth_mib": round(growth, 1),
    }  # fmt: skip


async def throughput(quick: bool) -> dict[str, float]:
    """Pictures per second at 64 waiting connections, by number of workers."""
    result = {}
    for workers in (1, 2) if quick else (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            async with service(Path(folder), workers) as (settings, _):
                connections = await connected(settings.port, 64)
                await closed_loop(connections, 1.0)
                result[f"pictures_per_second_{workers}_workers"] = round(
                    await closed_loop(connections, 2.0 if quick else 6.0), 1
                )
    return result


async def backlog(quick: bool) -> dict[str, float]:
    """Milliseconds of one enqueue, one look at a place in line and one take, with few and with many jobs waiting."""
    many = 2_000 if quick else 100_000
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder)) as valkey:
        settings = Settings(redis_url=valkey.url, engine="fake", max_queue=200_000)
        async with connect(valkey.url, PATIENT_TIMEOUT_S) as redis:
            info = ModelInfo.from_mapping(FakeEngine(1, 0).info())
            await Registry(redis, settings.namespace).publish_model(info)
            queue = Queue(redis, settings)
            job, _ = resolve(ImageRequest(prompt="an apple"), {info.id: info}, info.id)
            filled = 0
            for size in (100, many):
                while filled < size:
                    part = min(200, size - filled)
                    await asyncio.gather(*(queue.enqueue(f"job_{filled + i}", job, "job") for i in range(part)))
                    filled += part
                result |= {f"{name}_ms_at_{size}": value for name, value in (await _costs(queue, job, size)).items()}
                filled -= 100  # what _costs has taken out
    return result


async def _costs(queue: Queue, job: JobInput, size: int) -> dict[str, float]:
    """Medians over 100 calls; as many jobs are taken as were added, and then 100 more."""
    times: dict[str, list[float]] = {"enqueue": [], "place": [], "take": []}
    for i in range(100):
        begin = time.perf_counter()
        await queue.enqueue(f"new_{size}_{i}", job, "job")
        times["enqueue"].append(time.perf_counter() - begin)
        record = await queue.get(f"new_{size}_{i}")
        begin = time.perf_counter()
        await queue.place(record)
        times["place"].append(time.perf_counter() - begin)
    for i in range(200):
        begin = time.perf_counter()
        await queue.take(f"worker-{size}-{i}", job.model)
        times["take"].append(time.perf_counter() - begin)
    return {name: round(1000 * float(np.median(values)), 3) for name, values in times.items()}


def _round(values: np.ndarray, percentile: float) -> float:
    return round(float(np.percentile(values, percentile)), 2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, a backlog of 2,000")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"machine": describe_machine()}
    for part in (latency, throughput, backlog):
        figures = asyncio.run(part(args.quick))
        for name, value in figures.items():
            print(f"{name:32s}{value:10}")
        result |= figures
    if not args.quick:
        print(f"kept in {keep('load', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
