"""What FLUID_RESULTS costs: latency, processor time and memory of Redis per image and upload.

`python -m benchmarks.options.storage` loads three services of the fake engine in turns, one caller after another, so
that a busy machine slows all alike: with images in Redis, in a folder, in a bucket of moto's server. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.service import Service, service
from benchmarks.options.s3_server import REGION, s3_server

UPLOADS, UPLOAD_BYTES = 20, 256 << 10
BODY = {"prompt": "a red apple", "num_inference_steps": 4}


async def used_memory(running: Service) -> int:
    return int((await running.queue.redis.info("memory"))["used_memory"])


async def images(running: Service, client: httpx.AsyncClient, count: int) -> list[float]:
    """Milliseconds of each of `count` requests for one image, one after another."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        answer = await client.post("/v1/images/generations", json=BODY)
        answer.raise_for_status()
        found.append((time.perf_counter() - began) * 1000)
    return found


async def uploads(client: httpx.AsyncClient) -> list[float]:
    """Milliseconds of each upload of a file."""
    found = []
    for _ in range(UPLOADS):
        began = time.perf_counter()
        file = {"file": ("in", os.urandom(UPLOAD_BYTES))}
        (await client.post("/v1/files", files=file, data={"purpose": "vision"})).raise_for_status()
        found.append((time.perf_counter() - began) * 1000)
    return found


async def measure(places: dict[str, str], rounds: int, count: int) -> dict[str, dict[str, float]]:
    async with AsyncExitStack() as stack:
        running = {
            name: await stack.enter_async_context(service(1, fake_step_ms=0.0, results=place))
            for name, place in places.items()
        }
        clients = {
            name: await stack.enter_async_context(httpx.AsyncClient(base_url=each.settings.base_url, timeout=60))
            for name, each in running.items()
        }
        for name, each in running.items():
            await images(each, clients[name], 20)
        memory = {name: await used_memory(each) for name, each in running.items()}
        times: dict[str, list[float]] = {name: [] for name in places}
        cpu: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for _ in range(rounds):
            for name, each in running.items():
                before = each.cpu_s()
                times[name] += await images(each, clients[name], count)
                cpu[name].append({role: (used - before[role]) / count * 1000 for role, used in each.cpu_s().items()})
        result: dict[str, dict[str, float]] = {}
        for name, each in running.items():
            now = await used_memory(each)
            sent = await uploads(clients[name])
            row: dict[str, Any] = {
                "p50_ms": statistics.median(times[name]),
                "p99_ms": statistics.quantiles(times[name], n=100)[98],
                "redis_bytes_per_image": (now - memory[name]) / rounds / count,
                **{f"{role}_cpu_ms": statistics.median(each[role] for each in cpu[name]) for role in cpu[name][0]},
                "upload_p50_ms": statistics.median(sent),
                "redis_bytes_per_upload": (await used_memory(each) - now) / UPLOADS,
            }
            result[name] = {key: round(value, 2) for key, value in row.items()}
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=50, help="per round and service")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fluid-storage-") as folder, s3_server("pictures") as relay:
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{relay.port}", **REGION}
        os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
        places = {"redis": "redis", "folder": Path(folder).as_uri(), "bucket": "s3://pictures/prefix"}
        result = asyncio.run(measure(places, args.rounds, args.images))
    for name, row in result.items():
        print(f"{name:6s} " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    print(json.dumps({"load_average": os.getloadavg(), **result}))


if __name__ == "__main__":
    main()
