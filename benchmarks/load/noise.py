"""A caller who keeps every limit of an API key used up: python -m benchmarks.load.noise URL KEY.

Prints a line once it has begun, runs until its standard input ends, cancels its batches, and prints how often it did
what, by status, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

STREAMS, DEAD_ENDPOINTS, LINES = 90, 20, 500
LONG = {"prompt": "a cat", "num_inference_steps": 64}
PAUSE_S = 0.05  # of each of its tasks between two requests
BEGIN_S = 2.0


class Noise:
    """The tasks of the noisy caller."""

    def __init__(self, http: httpx.AsyncClient, endpoints: list[str]) -> None:
        self._http, self._endpoints = http, endpoints
        self.did: Counter[str] = Counter()
        self._batches: list[str] = []

    async def _send(self, what: str, method: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError:
            self.did[f"{what} 0"] += 1
            return None
        self.did[f"{what} {answer.status_code}"] += 1
        return answer

    async def jobs(self) -> None:
        await self._send("job", "POST", "/v1/jobs", json=LONG | {"n": 4})

    async def high_jobs(self) -> None:
        await self._send("high", "POST", "/v1/jobs", json=LONG | {"priority": "high"})

    async def webhooks(self) -> None:
        url = self._endpoints[self.did.total() % len(self._endpoints)]
        body = {"prompt": "a cat", "num_inference_steps": 1, "webhook": url}
        await self._send("webhook", "POST", "/v1/jobs", json=body)

    async def images(self) -> None:
        await self._send("image", "POST", "/v1/images/generations", json=LONG)

    async def files(self) -> None:
        form = {"files": {"file": ("x.jsonl", b"x" * (4 << 20))}, "data": {"purpose": "batch"}}
        await self._send("file", "POST", "/v1/files", **form)
        await asyncio.sleep(0.5)

    async def batches(self) -> None:
        line = {"method": "POST", "url": "/v1/images/generations", "body": LONG}
        data = "\n".join(json.dumps(line | {"custom_id": str(n)}) for n in range(LINES)).encode()
        form = {"files": {"file": ("x.jsonl", data)}, "data": {"purpose": "batch"}}
        file = await self._send("batch file", "POST", "/v1/files", **form)
        if file is not None and file.status_code == 200:
            body = {
                "input_file_id": file.json()["id"],
                "endpoint": "/v1/images/generations",
                "completion_window": "24h",
                "metadata": {f"{n:064}": "x" * 512 for n in range(16)},
            }
            batch = await self._send("batch", "POST", "/v1/batches", json=body)
            if batch is not None and batch.status_code == 200:
                self._batches.append(batch.json()["id"])
        await asyncio.sleep(0.5)

    async def lists(self) -> None:
        await self._send("list", "GET", "/v1/jobs", params={"status": "aborted", "limit": 100})
        await asyncio.sleep(0.1)

    async def streams(self) -> None:
        """Follow one long job many times, for as long as it runs."""
        job = await self._send("job", "POST", "/v1/jobs", json={"prompt": "a cat", "num_inference_steps": 2000})
        if job is not None and job.status_code == 202:
            await asyncio.gather(*(self._follow(job.json()["urls"]["events"]) for _ in range(STREAMS)))

    async def _follow(self, path: str) -> None:
        with suppress(httpx.HTTPError):
            async with self._http.stream("GET", path) as answer:
                self.did[f"stream {answer.status_code}"] += 1
                async for _ in answer.aiter_bytes():
                    pass

    async def cancel_batches(self) -> None:
        for batch in self._batches:
            await self._send("cancel", "POST", f"/v1/batches/{batch}/cancel")


async def _repeat(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await work()
        await asyncio.sleep(PAUSE_S)


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await reader.read()
    writer.close()


@asynccontextmanager
async def _dead_endpoints(count: int) -> AsyncIterator[list[str]]:
    servers = [await asyncio.start_server(_never_answer, "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/" for server in servers]
    finally:
        for server in servers:
            server.close()


async def main(url: str, key: str) -> None:
    limits = httpx.Limits(max_connections=STREAMS + 50)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        _dead_endpoints(DEAD_ENDPOINTS) as endpoints,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False) as http,
    ):
        noise = Noise(http, endpoints)
        kinds = (
            noise.jobs, noise.jobs, noise.high_jobs, noise.webhooks, noise.images, noise.images, noise.files,
            noise.batches, noise.lists, noise.streams,
        )  # fmt: skip
        tasks = [asyncio.create_task(_repeat(kind)) for kind in kinds]
        await asyncio.sleep(BEGIN_S)
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await noise.cancel_batches()
        print(json.dumps(noise.did), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
