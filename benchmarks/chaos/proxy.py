"""A TCP proxy whose connections can go silent, as behind a firewall that has forgotten them, and whose target can move,
as a virtual address does at a failover."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

Target = Path | int  #: a unix socket, or a port of this machine
CHUNK = 1 << 16


class Proxy:
    """Context manager: forwards connections from its port to the target. It runs in a thread of its own, so that it
    forwards while its user waits; every method may be called from any thread."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.port = 0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def switch(self, target: Target) -> None:
        """Lead new connections to another target; the open ones stay where they are."""
        self.target = target

    def silence(self, share: float = 1.0, random: Random | None = None) -> int:
        """Let open connections go silent: they stay open, and nothing passes any more. New ones work.

        Returns how many of them, chosen with the probability `share`.
        """
        random = random or Random()

        def chosen() -> int:
            links = [link for link in self._links if not link.silent and random.random() < share]
            for link in links:
                link.silent = True
            return len(links)

        return self._call(chosen)

    @property
    def forwarding(self) -> int:
        """Number of open connections that are not silent."""
        return self._call(lambda: sum(not link.silent for link in self._links))

    def _call(self, function: Callable[[], int]) -> int:
        async def run() -> int:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        self._server.close()
        tasks = [link.task for link in self._links if link.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs = await _open(self.target)
        except OSError:  # the target is down; so is the connection
            writer.close()
            return
        link = _Link((reader, writer), theirs)
        self._links.add(link)
        try:
            with suppress(asyncio.CancelledError):  # by `_close`; asyncio's server would log it
                await link.run()
        finally:
            self._links.discard(link)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: Stream, target: Stream) -> None:
        self.silent = False
        self.task = asyncio.current_task()
        self._client, self._target = client, target

    async def run(self) -> None:
        """Forward until one side closes, then close the other. Both are read even in silence, to notice the close."""
        (reader, writer), (their_reader, their_writer) = self._client, self._target
        pumps = [
            asyncio.ensure_future(self._pump(reader, their_writer)),
            asyncio.ensure_future(self._pump(their_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for each in (writer, their_writer):
                each.close()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if not self.silent:
                    writer.write(data)
                    await writer.drain()
        if self.silent and reader is self._target[0]:  # the client is not told
            await asyncio.Event().wait()


async def _open(target: Target) -> Stream:
    if isinstance(target, int):
        return await asyncio.open_connection("127.0.0.1", target)
    return await asyncio.open_unix_connection(str(target))
