"""The load of a soak test: images at a steady rate, and visitors that use everything else the API has.

Most of the load are requests that wait for one image, at times of a Poisson process. Each visitor repeats one kind of
request: jobs that are followed, abandoned or canceled, streams with previews, batches, webhooks, lists, metrics, and
requests that are refused. A visitor that fails is counted and goes on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from random import Random
from typing import Any

import httpx

from benchmarks.chaos.report import percentile
from benchmarks.load.generator import Generator, Run, poisson, request_bytes
from benchmarks.soak.samples import Recorder
from server.client.aio import AsyncFluidClient
from server.errors import ServiceError

STEPS = 8
OPTIONS: dict[str, Any] = {"num_inference_steps": STEPS}
BODY = {"prompt": "an apple", "seed": 1, **OPTIONS}
LINES = 20
PERIOD_S = {"batch": 30.0, "refused": 5.0}  # time between two requests of a visitor; 2 s for the others
WINDOW_S = 60.0  # of latencies that are judged together
CAPACITY_RUNS = 3


def ideal_per_s(rows: int, step_ms: float) -> float:
    """Return how many images per second the engine of one worker can generate."""
    return rows / (STEPS * step_ms / 1000)


async def capacity(generator: Generator, ideal: float) -> float:
    """Return images/s of the service, the median of runs that send some seconds of work at once."""
    rates = []
    for _ in range(CAPACITY_RUNS):
        began = time.perf_counter()
        run = await generator.run(request_bytes(BODY), [0.0] * round(3 * ideal))
        rates.append(len(run.samples) / (time.perf_counter() - began))
    return sorted(rates)[CAPACITY_RUNS // 2]


async def send_forever(generator: Generator, rate: float, recorder: Recorder) -> None:
    """Send images at this rate, and write p50 and p99 of every window once all its responses are there."""

    async def window(number: int) -> None:
        try:
            run = await generator.run(request_bytes(BODY), poisson(rate, WINDOW_S, seed=number))
        except TimeoutError:
            recorder.write("window", {"number": number, "hung": True})
        else:
            recorder.write("window", {"number": number, **_latencies(run)})

    began, number = time.monotonic(), 0
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(window(number))
            number += 1
            await asyncio.sleep(max(0.0, began + number * WINDOW_S - time.monotonic()))


def _latencies(run: Run) -> dict[str, Any]:
    latencies = [sample.latency for sample in run.samples]
    return {
        "images": len(latencies), "failed": run.failed, "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
    }  # fmt: skip


class Visitors:
    """Callers of everything but plain images. `did` counts their requests by kind and outcome."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._random = Random(1)
        self.did: Counter[str] = Counter()

    @property
    def images_per_s(self) -> float:
        """Images that all visitors together ask for."""
        single = len([kind for kind in self._kinds() if kind not in ("lists", *PERIOD_S)])
        return single / 2 + LINES / PERIOD_S["batch"]

    def _kinds(self) -> dict[str, Callable[[AsyncFluidClient], Awaitable[object]]]:
        return {
            "followed": self._follow, "abandoned": self._abandon, "canceled": self._cancel, "hung up": self._hang_up,
            "streamed": self._stream, "webhook": self._webhook, "lists": self._list, "batch": self._batch,
            "refused": self._refused,
        }  # fmt: skip

    async def run_forever(self) -> None:
        """Run one visitor of each kind, and the endpoint of their webhooks."""
        async with (
            AsyncFluidClient(self._url, timeout_s=60, max_retries=0, use_proxy=False) as client,
            httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as self._http,
            await asyncio.start_server(_accept_webhook, "127.0.0.1", 0) as sink,
            asyncio.TaskGroup() as group,
        ):
            self._sink = f"http://127.0.0.1:{sink.sockets[0].getsockname()[1]}/"
            for kind, visit in self._kinds().items():
                group.create_task(self._repeat(kind, visit, client))

    async def _repeat(
        self, kind: str, visit: Callable[[AsyncFluidClient], Awaitable[object]], client: AsyncFluidClient
    ) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * PERIOD_S.get(kind, 2.0))
            try:
                async with asyncio.timeout(120):
                    await visit(client)
            except (ServiceError, httpx.HTTPError, TimeoutError, LookupError, json.JSONDecodeError) as error:
                self.did[f"{kind}: {type(error).__name__}"] += 1
            else:
                self.did[kind] += 1

    async def _follow(self, client: AsyncFluidClient) -> None:
        job = await client.submit("a cat", partial_images=1, **OPTIONS)
        async with aclosing(client.follow(job["id"])) as events:
            async for _ in events:
                pass
        await client.image(job["id"])

    async def _abandon(self, client: AsyncFluidClient) -> None:
        """Close the event stream after its first event, while the job runs."""
        job = await client.submit("a cat", **OPTIONS)
        async with aclosing(client.follow(job["id"])) as events:
            async for _ in events:
                break

    async def _cancel(self, client: AsyncFluidClient) -> None:
        job = await client.submit("a cat", **OPTIONS)
        await asyncio.sleep(self._random.uniform(0.0, 0.3))
        await client.cancel(job["id"])

    async def _hang_up(self, client: AsyncFluidClient) -> None:
        """Disconnect from a request that waits for its image, which cancels it."""
        with suppress(httpx.TimeoutException):
            await self._http.post("/v1/images/generations", json=BODY, timeout=self._random.uniform(0.01, 0.3))

    async def _stream(self, client: AsyncFluidClient) -> None:
        async with aclosing(client.stream("a cat", partial_images=2, **OPTIONS)) as items:
            async for _ in items:
                pass

    async def _webhook(self, client: AsyncFluidClient) -> None:
        await client.submit("a cat", webhook=self._sink, **OPTIONS)

    async def _list(self, client: AsyncFluidClient) -> None:
        for path in ("/v1/jobs?limit=20", "/v1/jobs?status=canceled", "/v1/models", "/metrics", "/health/ready"):
            (await self._http.get(path)).raise_for_status()

    async def _batch(self, client: AsyncFluidClient) -> None:
        lines = [json.dumps({"custom_id": str(n), "body": BODY | {"seed": n}}) for n in range(LINES)]
        batch = await client.submit_batch("\n".join(lines).encode())
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(1)
            batch = await client.batch(batch["id"])
        async with aclosing(client.batch_results(batch["id"])) as results:
            found = [line async for line in results]
        if len(found) < LINES:
            raise LookupError(f"{len(found)} of {LINES} results")

    async def _refused(self, client: AsyncFluidClient) -> None:
        for body in ({"prompt": ""}, BODY | {"n": 10**6}, BODY | {"colour": "red"}):
            await self._http.post("/v1/images/generations", json=body)
        await self._http.get("/v1/jobs/job_unknown")
        await self._http.post("/v1/images/generations", content=b"{", headers={"Content-Type": "application/json"})


async def _accept_webhook(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one webhook with 204."""
    with suppress(ConnectionError, asyncio.IncompleteReadError, KeyError):
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
    writer.close()
