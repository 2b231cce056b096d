"""The load generator is open-loop: requests never wait for responses, and latency counts from the schedule."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.load import backlog, growth, latency, streams
from benchmarks.load.generator import Generator, poisson, request_bytes

pytestmark = pytest.mark.anyio
REQUEST = request_bytes({"prompt": "a cat"})
TIMES = "".join(f"x-{name}-time-ms: 1.0\r\n" for name in ("queue", "inference", "encode", "overhead"))
OK = f"HTTP/1.1 200 OK\r\n{TIMES}Content-Length: 3\r\n\r\nabc".encode()
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
Answer = Callable[[int], Awaitable[bytes | None]]  # number of the request -> bytes to send, None: hang up


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[int]:
    """Serve the bytes that `answer` returns, and yield the port."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readexactly(len(REQUEST))
                count += 1
                data = await answer(count)
                if data is None:
                    return
                writer.write(data[:30])  # responses arrive in pieces
                await writer.drain()
                writer.write(data[30:])
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def test_requests_are_sent_while_earlier_ones_wait_and_the_wait_counts() -> None:
    """A closed loop would send one request here, and report one slow response."""
    release = asyncio.Event()

    async def stalled(number: int) -> bytes:
        if number == 10:  # all have arrived before any was answered
            release.set()
        await release.wait()
        return OK

    async with server(stalled) as port:
        generator = Generator(port)
        await generator.open(2)
        run = await generator.run(REQUEST, [i / 20 for i in range(10)])
        generator.close()
    assert (len(run.samples), run.peak_in_flight, generator.opened) == (10, 10, 10)
    # Answered together, so those that were sent earlier waited longer: their latency counts from the schedule.
    waits = [sample.latency for sample in run.samples]
    assert max(waits) - min(waits) > 100  # of 450 ms


async def test_the_parts_of_the_latency_add_up() -> None:
    async with server(lambda number: asyncio.sleep(0, OK)) as port:
        generator = Generator(port)
        run = await generator.run(REQUEST, [0.0])
        generator.close()  # or from Python 3.12.1 on the server waits for it
    [sample] = run.samples
    assert sample.added == pytest.approx(sample.latency - 2)
    assert sample.gateway == pytest.approx(sample.latency - 4)


async def test_rejections_and_lost_connections_are_counted_but_not_timed() -> None:
    answers = {1: OK, 2: BUSY, 3: None}

    async with server(lambda number: asyncio.sleep(0, answers[number])) as port:
        generator = Generator(port)
        run = await generator.run(REQUEST, [0.0, 0.1, 0.2])
        generator.close()
    assert len(run.samples) == 1 and run.failed == {503: 1, 0: 1}


async def test_a_connection_closed_by_the_server_is_not_reused() -> None:
    """Servers close idle connections; a request on a closed one used to stay unanswered and hang the run."""
    async with server(lambda number: asyncio.sleep(0, None if number == 1 else OK)) as port:
        generator = Generator(port)
        await generator.open(2)
        first = await generator.run(REQUEST, [0.0])
        for connection in generator._idle:
            connection.close()
        second = await generator.run(REQUEST, [0.0, 0.05])
        generator.close()
    assert first.failed == {0: 1} and len(second.samples) == 2


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson(100, 50, seed=3)
    assert times == sorted(times) and len(times) == pytest.approx(5000, rel=0.1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1/e of them beyond the mean


@pytest.mark.slow
async def test_the_measurements_run_against_the_real_service() -> None:
    """Quick runs answer every request and report every figure."""
    figures = await latency.at_100_per_second(quick=True)
    assert figures["failed_100rps"] == {} and figures["requests_100rps"] > 200
    assert all(figures[name] is not None for name in figures)


@pytest.mark.slow
async def test_the_cost_of_the_queue_counts_every_command_of_its_scripts() -> None:
    """No operation sends more commands with 2,000 jobs waiting than with 100."""
    costs = await backlog.by_size(quick=True)
    for name in ("enqueue", "place", "take", "progress", "finish", "cancel", "list", "requeue"):
        few, many = costs[f"{name}_commands"]
        assert 1 < many <= few * 1.1, name
        assert costs[f"{name}_us_at_2000"] > 0
    assert 500 < costs["bytes_per_waiting_job_at_2000"] < 4000


@pytest.mark.slow
async def test_each_open_stream_takes_memory_that_closed_ones_give_back() -> None:
    figures = await streams.memory_of_each(quick=True)
    assert figures["streams"] == 50 and 0 < figures["gateway_kib_per_stream"] < 500
    assert figures["gateway_kib_per_stream_again"] < 2 * figures["gateway_kib_per_stream"]


def test_the_rate_of_bursts_does_not_depend_on_where_the_count_begins() -> None:
    """Four images every second: counted within 1.5 seconds they would be 4 or 8."""
    times = [second + image / 1000 for second in range(10) for image in range(4)]
    assert growth.slope(times) == pytest.approx(4, rel=0.02)
    assert growth.slope(times[2:]) == pytest.approx(4, rel=0.02)
