"""The load that the comparison puts on each server, against servers of which all is known."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.peers import wrk

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason=wrk.INSTALL)
PNG = b"\x89PNG\r\n\x1a\n"
Answer = Callable[[dict[str, object]], Awaitable[int]]  # request body -> status


async def loaded(answer: Answer, load: Callable[[int], wrk.Load]) -> wrk.Load:
    """Return what `load` sees of a server that answers with statuses."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())  # type: ignore[arg-type]
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                status = await answer(json.loads(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\n" % status + PNG[:4])
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # asyncio's servers report a task that ends as canceled as an error
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        seen = await asyncio.to_thread(load, listening.sockets[0].getsockname()[1])
        for connection in connections:  # wrk hangs up while requests are being answered
            connection.cancel()
        await asyncio.gather(*connections)
    return seen


@needs_wrk
@pytest.mark.anyio
async def test_closed_loop_load_draws_steps_from_the_list_and_counts_failures() -> None:
    bodies = []

    async def answer(body: dict[str, object]) -> int:
        bodies.append(body)
        first = len(bodies) == 1
        await asyncio.sleep(0.01)
        return 503 if first else 200

    load = await loaded(answer, lambda port: wrk.closed(port, 4, (8, 20, 64), wrk.Length(1)))
    assert load.failed == 1 and 0 < load.images <= len(bodies)
    assert {body["num_inference_steps"] for body in bodies} == {8, 20, 64}
    assert len({body["seed"] for body in bodies}) == len(bodies)


@needs_wrk
@pytest.mark.anyio
async def test_images_per_second_of_whole_batches_do_not_depend_on_where_the_run_ends() -> None:
    """Counted by the duration, a run that ends just before a batch of 8 does was up to a whole batch too slow."""
    waiting: list[asyncio.Future[int]] = []
    batches: list[float] = []
    clock = asyncio.get_running_loop().time

    async def answer(body: dict[str, object]) -> int:
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 8:
            whole = waiting.copy()
            waiting.clear()
            await asyncio.sleep(0.35)
            batches.append(clock())
            for future in whole:
                future.set_result(200)
            return 200
        return await waiting[-1]

    load = await loaded(answer, lambda port: wrk.closed(port, 8, (8,), wrk.Length(2)))
    own = 8 * (len(batches) - 1) / (batches[-1] - batches[0])
    assert load.images_per_s == pytest.approx(own, rel=0.15)


@needs_wrk
@pytest.mark.anyio
async def test_requests_at_a_rate_leave_on_schedule_although_none_is_answered_for_a_while() -> None:
    """A closed loop would send as many requests as it has connections and then wait."""
    count = 0

    async def answer(body: dict[str, object]) -> int:
        nonlocal count
        count += 1
        await asyncio.sleep(0.5)
        return 200

    load = await loaded(answer, lambda port: wrk.paced(port, 40.0, (8,), wrk.Length(2)))
    assert count >= 40 and count == pytest.approx(40 * load.seconds, rel=0.35) and load.late_ms < 500
    assert load.failed == 0 and load.p50_ms >= 500


@needs_wrk
@pytest.mark.anyio
async def test_a_run_goes_on_until_it_has_seen_enough_responses_and_no_longer() -> None:
    """A server whose batches take longer than the run had no images at all; the longest time still ends a run."""

    async def answer(body: dict[str, object]) -> int:
        await asyncio.sleep(0.4)
        return 200

    load = await loaded(answer, lambda port: wrk.closed(port, 2, (8,), wrk.Length(1, 8, 30)))
    assert 8 <= load.images <= 10 and load.images_per_s == pytest.approx(load.images / load.seconds, rel=0.3)
    cut = await loaded(answer, lambda port: wrk.closed(port, 2, (8,), wrk.Length(1, 10**6, 2)))
    assert 0 < cut.images <= 12
