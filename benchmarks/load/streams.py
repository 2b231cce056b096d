"""Memory of an open event stream: of the gateway's process and of Redis.

Each stream follows a job of its own, which waits, because no worker runs. Memory that the first streams leave behind
when they close is the allocator's and not counted: a fifth as many are opened and closed once before.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any

from benchmarks.load.service import Service, rss_mib, service
from benchmarks.load.throughput import job
from server.model_info import ModelInfo
from server.queue.job_queue import Submission
from server.queue.registry import Registry
from server.worker.engine.fake import FakeEngine

STREAMS, QUICK_STREAMS = 500, 50
OPEN_AT_ONCE = 50
WAIT_S = 30.0


async def memory_of_each(quick: bool) -> dict[str, Any]:
    """Measure KiB per open stream in the gateway and in Redis, then what closed streams leave, and the same again."""
    count = QUICK_STREAMS if quick else STREAMS
    async with service(0, max_streams=2 * count) as running:
        redis = running.queue.redis
        await Registry(redis, running.settings.namespace).publish_model(
            ModelInfo.from_mapping(FakeEngine(1, 0.0).info())
        )
        ids = [f"job_stream{i}" for i in range(count)]
        for id_ in ids:
            await running.queue.enqueue(Submission(id_, job(8), "job"))
        warm = await _open(running, ids[: count // 5])
        await _close(running, warm)
        rss, used = rss_mib(running.gateway.pid), await _used_mib(running)
        streams = await _open(running, ids)
        await asyncio.sleep(1.0)  # what a stream does after its first event
        figures = {
            "gateway_kib_per_stream": round(1024 * (rss_mib(running.gateway.pid) - rss) / count, 1),
            "redis_kib_per_stream": round(1024 * (await _used_mib(running) - used) / count, 1),
            "streams": len(streams),
        }
        await _close(running, streams)
        left = rss_mib(running.gateway.pid) - rss
        again = await _open(running, ids)
        figures["gateway_kib_per_stream_left"] = round(1024 * left / count, 1)
        figures["gateway_kib_per_stream_again"] = round(1024 * (rss_mib(running.gateway.pid) - rss) / count, 1)
        await _close(running, again)
    return figures


async def _open(running: Service, ids: list[str]) -> list[asyncio.StreamWriter]:
    """Follow these jobs; return once each stream has sent its first event."""
    limit = asyncio.Semaphore(OPEN_AT_ONCE)

    async def follow(job_id: str) -> asyncio.StreamWriter:
        async with limit, asyncio.timeout(WAIT_S):
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", running.settings.port)
                writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                status = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
                if status == b"200":
                    await reader.readuntil(b"data: ")
                    return writer
                await _hang_up(writer)
                if status != b"503":  # a gateway whose Redis was too slow, on a machine that does other work
                    raise RuntimeError(f"no stream: {status!r}")
                await asyncio.sleep(1.0)

    return list(await asyncio.gather(*(follow(id_) for id_ in ids)))


async def _close(running: Service, streams: list[asyncio.StreamWriter]) -> None:
    """Hang up, and wait until the gateway has noticed."""
    before = _descriptors(running)
    await asyncio.gather(*map(_hang_up, streams))
    async with asyncio.timeout(WAIT_S):
        while _descriptors(running) > before - len(streams):
            await asyncio.sleep(0.05)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def _descriptors(running: Service) -> int:
    return len(os.listdir(f"/proc/{running.gateway.pid}/fd"))


async def _used_mib(running: Service) -> float:
    return int((await running.queue.redis.info("memory"))["used_memory"]) / 2**20
