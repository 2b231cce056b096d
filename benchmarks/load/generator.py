"""A cheap open-loop HTTP client: it shares the machine with the service that it measures.

Open loop: requests leave on schedule regardless of earlier ones, and latency counts from the scheduled time, so that a
stalled service is charged for every request that had to wait (no coordinated omission). A connection carries one
request at a time; if none is idle, another is opened. It implements just enough of HTTP/1.1 for keep-alive and
content-length.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

SETTLE_S = 60.0
Done = Callable[[int, dict[str, str]], None]  # status, headers


def request_bytes(body: dict[str, Any], key: str = "") -> bytes:
    """Encode a request for the image file itself, whose timing comes in headers; `key` is an API key."""
    text = json.dumps(body).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nAccept: image/png\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text) + text


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self._buffer = b""
        self._done: Done | None = None
        self.alive = True  # servers close connections that were idle for a while

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def post(self, request: bytes, done: Done) -> None:
        self._done, self._buffer = done, b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._done is None:
            return
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if len(self._buffer) - end - 4 >= int(headers["content-length"]):
            done, self._done = self._done, None
            done(int(lines[0].split(" ")[1]), headers)

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        if self._done is not None:
            self._done(0, {})

    def close(self) -> None:
        self._transport.close()


@dataclass
class Sample:
    """Times of one request in milliseconds. The parts are reported by the service, in the response's headers."""

    latency: float
    lag: float  # how late the generator itself was
    queue: float
    inference: float
    encode: float
    rest: float

    @property
    def added(self) -> float:
        """Latency without the time in the engine and in encoding the file."""
        return self.latency - self.inference - self.encode

    @property
    def gateway(self) -> float:
        """Latency outside of accept and finish, the queue's first and last script."""
        return self.latency - self.queue - self.inference - self.encode - self.rest


@dataclass
class Run:
    """Outcome of one schedule."""

    samples: list[Sample] = field(default_factory=list)
    failed: dict[int, int] = field(default_factory=dict)  # by status; 0: the connection was lost
    in_flight: int = 0
    peak_in_flight: int = 0
    cpu_share: float = 0.0  # share of one core that the generator itself used


class Generator:
    """A pool of connections to one gateway."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened = 0
        self._idle: list[Connection] = []

    async def open(self, count: int) -> None:
        for _ in range(count):
            self._idle.append(await self._connect())

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        self.opened += 1
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def run(self, request: bytes, schedule: Sequence[float]) -> Run:
        """Send `request` at each of these times (seconds from now), and wait for all responses.

        Raises TimeoutError if a response is missing SETTLE_S after the last request.
        """
        loop, run = asyncio.get_running_loop(), Run()
        began, cpu, wall = loop.time() + 0.05, time.process_time(), time.perf_counter()
        responded: asyncio.Queue[None] = asyncio.Queue()

        def send(connection: Connection, at: float) -> None:
            sent = loop.time()
            run.in_flight += 1
            run.peak_in_flight = max(run.peak_in_flight, run.in_flight)

            def done(status: int, headers: dict[str, str]) -> None:
                run.in_flight -= 1
                if status == 200:
                    run.samples.append(_sample(loop.time() - at, sent - at, headers))
                else:
                    run.failed[status] = run.failed.get(status, 0) + 1
                if status:
                    self._idle.append(connection)
                responded.put_nowait(None)

            connection.post(request, done)

        async def send_on_new_connection(at: float) -> None:
            send(await self._connect(), at)

        connecting: set[asyncio.Task[None]] = set()
        for offset in schedule:
            at = began + offset
            if (wait := at - loop.time()) > 0:
                await asyncio.sleep(wait)
            while self._idle and not self._idle[-1].alive:
                self._idle.pop()
            if self._idle:
                send(self._idle.pop(), at)
            else:
                task = asyncio.create_task(send_on_new_connection(at))
                connecting.add(task)
                task.add_done_callback(connecting.discard)
        run.cpu_share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        async with asyncio.timeout(SETTLE_S):
            for _ in schedule:
                await responded.get()
        return run


def _sample(latency_s: float, lag_s: float, headers: dict[str, str]) -> Sample:
    names = ("queue", "inference", "encode", "overhead")
    return Sample(latency_s * 1000, lag_s * 1000, *(float(headers[f"x-{name}-time-ms"]) for name in names))


def poisson(per_second: float, seconds: float, seed: int = 0) -> list[float]:
    """Return arrival times in seconds of a Poisson process: independent callers."""
    random, at, times = Random(seed), 0.0, []
    while (at := at + random.expovariate(per_second)) < seconds:
        times.append(at)
    return times
