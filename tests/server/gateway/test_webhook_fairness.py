"""Webhooks of several API keys: dead endpoints of one delay no other's, and are left alone for a while."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import prometheus_client
import pytest

from server import background
from server.gateway import webhooks
from server.gateway.webhooks import ENDPOINT_SLOTS, OWNER_SLOTS, TOLERATED_FAILURES, Due, Webhooks
from server.queue.job_queue import JobQueue, Submission
from tests.server.harness import job_input, until_async

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))


class Endpoint:
    """A receiver that answers at once, or accepts connections and never answers."""

    def __init__(self, *, dead: bool) -> None:
        self.dead = dead
        self.connections = self.open = self.peak = self.answered = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if self.dead:
                await reader.read()  # until the other side gives up
            else:
                writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                await writer.drain()
                self.answered += 1
        writer.close()
        self.open -= 1


@asynccontextmanager
async def listening(endpoint: Endpoint) -> AsyncIterator[str]:
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()


async def job_object(job_id: str) -> dict[str, object]:
    return {"id": job_id, "status": "canceled"}


@asynccontextmanager
async def delivering(queue: JobQueue) -> AsyncIterator[Webhooks]:
    registry = prometheus_client.CollectorRegistry()
    sent, bugs = (prometheus_client.Counter(name, "", ("x",), registry=registry) for name in ("sent", "bugs"))
    hooks = Webhooks(queue, KEY, private=True, sent=sent, bugs=bugs)
    task = asyncio.create_task(hooks.run_forever(job_object))
    try:
        yield hooks
    finally:
        await background.cancel_and_wait(task)


async def end_job(queue: JobQueue, name: str, owner: str, url: str) -> None:
    await queue.enqueue(Submission(name, job_input(owner=owner, webhook=url), "job"))
    await queue.cancel(name)


def becomes(check: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def checked() -> bool:
        return check()

    return checked


async def test_fifty_dead_endpoints_of_one_key_delay_no_other(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """They held all 16 slots for 15 s each: another tenant's webhook waited 41.8 s instead of 0.4. Here they hold their
    slots for as long as the test takes."""
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 600.0)
    dead, alive = [Endpoint(dead=True) for _ in range(50)], Endpoint(dead=False)
    async with AsyncExitStack() as stack:
        for number, endpoint in enumerate(dead):
            url = await stack.enter_async_context(listening(endpoint))
            await end_job(queue, f"ann{number}", "ann", url)
        bob = await stack.enter_async_context(listening(alive))
        await stack.enter_async_context(delivering(queue))
        await until_async(becomes(lambda: sum(each.open for each in dead) == OWNER_SLOTS))
        for number in range(3):
            await end_job(queue, f"bob{number}", "bob", bob)
        await until_async(becomes(lambda: alive.answered == 3))
        assert sum(each.open for each in dead) == OWNER_SLOTS


async def test_a_dead_endpoint_leaves_slots_to_the_others_of_its_key(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 600.0)
    dead, alive = Endpoint(dead=True), Endpoint(dead=False)
    async with listening(dead) as bad, listening(alive) as good, delivering(queue):
        for number in range(30):
            await end_job(queue, f"bad{number}", "ann", bad)
        await until_async(becomes(lambda: dead.open == ENDPOINT_SLOTS))
        await end_job(queue, "good", "ann", good)
        await until_async(becomes(lambda: alive.answered == 1))
        assert dead.peak == ENDPOINT_SLOTS


async def test_an_endpoint_that_keeps_failing_is_left_alone(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand jobs of one dead endpoint made a thousand attempts in a row, and again five seconds later."""
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(webhooks, "PAUSE_S", 300.0)  # longer than the test
    dead, alive = Endpoint(dead=True), Endpoint(dead=False)
    async with listening(dead) as bad, listening(alive) as good, delivering(queue) as hooks:
        for number in range(40):
            await end_job(queue, f"bad{number}", "ann", bad)
        endpoint = queue.keys.webhook_endpoint_hash("ann", bad.split("/")[2])

        async def paused() -> float:
            return float(await queue.redis.hget(endpoint, "until") or 0)

        until = await until_async(paused)
        assert until > time.time()
        assert dead.connections <= TOLERATED_FAILURES + ENDPOINT_SLOTS + 1
        await end_job(queue, "good", "ann", good)
        await until_async(becomes(lambda: alive.answered == 1))
        assert hooks.sent.labels("failed")._value.get() <= TOLERATED_FAILURES + ENDPOINT_SLOTS + 1


async def test_an_endpoint_that_works_again_is_forgiven(queue: JobQueue) -> None:
    alive = Endpoint(dead=False)
    async with listening(alive) as url, delivering(queue):
        endpoint = queue.keys.webhook_endpoint_hash("ann", url.split("/")[2])
        await queue.redis.hset(endpoint, mapping={"failures": 9, "until": 1.0})
        await end_job(queue, "a", "ann", url)
        await until_async(becomes(lambda: alive.answered == 1))

        async def forgiven() -> bool:
            return not await queue.redis.exists(endpoint, queue.keys.webhooks_zset("ann"))

        await until_async(forgiven)


async def test_a_webhook_outlives_its_job(queue: JobQueue) -> None:
    """Its message was made at the first attempt: of many that waited for a failing endpoint, most came up after their
    jobs had been deleted, and were dropped without an attempt though it was back within hours."""
    alive = Endpoint(dead=False)
    async with listening(alive) as url, delivering(queue):
        endpoint = queue.keys.webhook_endpoint_hash("ann", url.split("/")[2])
        until_s = time.time() + 3600
        await queue.redis.hset(endpoint, mapping={"failures": 3, "until": until_s})
        for number in range(8):
            await end_job(queue, f"a{number}", "ann", url)

        async def made() -> bool:
            hashes = [queue.keys.webhook_hash(f"a{number}") for number in range(8)]
            return all([await queue.redis.hexists(key, "message") for key in hashes])

        await until_async(made)
        assert alive.connections == 0, "it is left alone"
        await queue.redis.delete(*(queue.keys.job_hash(f"a{number}") for number in range(8)))
        await queue.redis.delete(endpoint)
        for number in range(8):
            await queue.redis.zadd(queue.keys.webhooks_zset("ann"), {f"a{number}": 1.0})
        await queue.redis.zadd(queue.keys.webhook_owners_zset, {"ann": 1.0})
        await until_async(becomes(lambda: alive.answered == 8))


async def test_messages_of_one_owner_leave_room_for_others(queue: JobQueue) -> None:
    """Hundreds for a failing endpoint are prepared some at a time."""
    await queue.redis.hset(queue.keys.webhook_endpoint_hash("ann", "127.0.0.1:1"), mapping={"until": time.time() + 600})
    for number in range(200):
        await end_job(queue, f"a{number}", "ann", "http://127.0.0.1:1/")
    await end_job(queue, "b", "bob", "http://127.0.0.1:2/")
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("sent", "", ("x",), registry=registry)
    hooks = Webhooks(queue, KEY, private=True, sent=counter, bugs=counter)
    first = await hooks._claim(128, [])
    assert Counter((due.owner, due.prepare) for due in first) == {("ann", 1): 16, ("bob", 0): 1}
    more = await until_async(lambda: hooks._claim(128, []))  # ann is due again a millisecond later
    assert Counter((due.owner, due.prepare) for due in more) == {("ann", 1): 16}, "the rest stays due"


async def test_a_pause_does_not_outlive_a_success(queue: JobQueue) -> None:
    """A delivery that succeeded between a failure and its pause left the pause behind, without an end."""
    await queue.run("pause_endpoint", {"owner": "ann", "endpoint": "host:1", "until": 5.0})
    assert not await queue.redis.exists(queue.keys.webhook_endpoint_hash("ann", "host:1"))


async def test_owners_take_turns(queue: JobQueue) -> None:
    """Ten thousand due webhooks of one key used to be claimed before the first of another."""
    for number in range(300):
        await end_job(queue, f"a{number}", "ann", f"http://host{number}.example/")
    for owner in ("bob", "eve"):
        await end_job(queue, owner, owner, "http://127.0.0.1/")
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("sent", "", ("x",), registry=registry)
    hooks = Webhooks(queue, KEY, private=True, sent=counter, bugs=counter)
    running: list[Due] = []
    for count in (20, 20):
        running += await hooks._claim(count, running)
    assert Counter(due.owner for due in running) == {"ann": OWNER_SLOTS, "bob": 1, "eve": 1}
    assert await hooks._claim(20, running) == [], "each is claimed once"


async def test_a_webhook_whose_record_is_lost_is_removed(queue: JobQueue) -> None:
    await end_job(queue, "a", "ann", "http://127.0.0.1:1/")
    await queue.redis.delete(queue.keys.webhook_hash("a"))

    async def gone() -> bool:
        return not await queue.redis.exists(queue.keys.webhooks_zset("ann"))

    async with delivering(queue) as hooks:
        await until_async(gone)
    assert hooks.sent.labels("lost")._value.get() == 1
