"""Collects the requests that wait while a batch runs into the next one, written by hand."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.peers.servers.work import ROWS, Images


class Batcher:
    """Runs batches in a thread, one at a time. A lone request does not wait for others."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._engine_thread = ThreadPoolExecutor(1)
        self._waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[bytes]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def generate(self, body: dict[str, Any]) -> bytes:
        """Return the PNG of one request."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((body, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < ROWS and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            bodies = [body for body, _ in batch]
            try:
                files = await loop.run_in_executor(self._engine_thread, self._images.generate, bodies)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), file in zip(batch, files, strict=True):
                if not future.done():
                    future.set_result(file)
