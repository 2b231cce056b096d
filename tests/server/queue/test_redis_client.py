"""The Redis client under many concurrent callers."""

import asyncio
import os
import signal
import time

import pytest
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.connection.pool import MAX_CONNECTIONS
from server.queue.connection.retry import ReconnectingRetry
from server.queue.job_queue import JobQueue
from server.queue.redis_client import Client, connect, outlast_outages
from server.settings import Settings

pytestmark = pytest.mark.anyio


async def clients(redis: Client) -> int:
    return len(await redis.client_list())


async def test_a_thousand_concurrent_commands_share_a_few_connections(settings: Settings) -> None:
    """redis-py 8 allows 100 connections and raises beyond: the 101st concurrent caller used to get a 503. With one for
    each caller, their handshakes took longer than a gateway gives a command."""
    async with connect(settings.redis_url, 30.0) as redis:
        before = await clients(redis)
        assert all(await asyncio.gather(*(redis.ping() for _ in range(1000))))
        assert await clients(redis) <= before + MAX_CONNECTIONS


async def test_commands_wait_as_long_as_redis_answers(settings: Settings) -> None:
    """Each waits longer than the timeout of one command here: BLPOP holds all connections for a while, in turns."""
    async with connect(settings.redis_url, 2.0) as redis:
        await asyncio.gather(*(redis.ping() for _ in range(MAX_CONNECTIONS)))
        blocking = [redis.blpop("nothing", 0.7) for _ in range(4 * MAX_CONNECTIONS)]
        assert await asyncio.gather(*blocking) == [None] * len(blocking)


async def test_a_silent_redis_is_noticed_by_all_that_wait(own_valkey: EmbeddedValkey) -> None:
    """With a timeout each, the last of 500 callers would get its 503 in the eighth turn, after 8 s."""
    assert own_valkey.process is not None
    async with connect(own_valkey.url, 2.0) as redis:
        await asyncio.gather(*(redis.ping() for _ in range(MAX_CONNECTIONS)))
        os.kill(own_valkey.process.pid, signal.SIGSTOP)
        try:
            found = await asyncio.gather(*(redis.ping() for _ in range(500)), return_exceptions=True)
        finally:
            os.kill(own_valkey.process.pid, signal.SIGCONT)
        assert {type(each) for each in found} == {RedisTimeoutError}
        assert sum("waiting for a connection" in str(each) for each in found) >= 500 - 3 * MAX_CONNECTIONS
        assert all(await asyncio.gather(*(redis.ping() for _ in range(500))))


async def test_a_busy_event_loop_is_no_silent_redis(settings: Settings) -> None:
    """The answer lay in the socket while the gateway parsed 500 other requests, and the command was canceled for it."""
    async with connect(settings.redis_url, 0.3) as redis:
        assert await redis.ping()
        commands = [asyncio.create_task(redis.ping()) for _ in range(2 * MAX_CONNECTIONS)]
        for _ in range(6):
            await asyncio.sleep(0)
            time.sleep(0.5)  # what other requests do
        assert all(await asyncio.gather(*commands))


async def test_canceled_commands_give_their_connection_back(settings: Settings) -> None:
    """A few lost ones would stop a gateway for good."""
    async with connect(settings.redis_url, 5.0) as redis:
        for round_ in range(5):
            tasks = [asyncio.create_task(redis.blpop("nothing", 1)) for _ in range(3 * MAX_CONNECTIONS)]
            await asyncio.sleep(0.01 * round_)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert all(await asyncio.gather(*(redis.ping() for _ in range(3 * MAX_CONNECTIONS))))
        pool = redis.connection_pool
        assert not pool._holding and pool._slots._value == MAX_CONNECTIONS


async def test_errors_of_a_pipeline_quote_no_arguments(queue: JobQueue) -> None:
    """redis-py quotes the first 100 characters of the command: a batch's file stood in the log of a full Redis."""
    await queue.redis.set(queue.keys.probe, "text")
    for transaction in (True, False):
        async with queue.redis.pipeline(transaction=transaction) as pipe:
            pipe.hset(queue.keys.probe, mapping={"prompt": "a private prompt"})
            with pytest.raises(ResponseError) as caught:
                await pipe.execute()
        assert str(caught.value).startswith("HSET, command 1 of a pipeline: WRONGTYPE")
        assert "private" not in repr(caught.value)


async def test_bytes_in_a_field_do_not_fail_the_reply(queue: JobQueue) -> None:
    """A field of bytes, as a newer version may write one, was a UnicodeDecodeError for the whole list."""
    await queue.redis.execute_command("HSET", queue.keys.counters_hash, "packed", b"\x80\xff")
    assert (await queue.redis.hgetall(queue.keys.counters_hash))["packed"] == "\ufffd\ufffd"


async def test_a_start_outlasts_an_outage(settings: Settings) -> None:
    """A worker that started while Redis was away for longer than a lease ended with a traceback."""
    failures = [RedisConnectionError("gone"), RedisConnectionError("still gone")]

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    async with connect(settings.redis_url, 30.0) as redis:
        assert await outlast_outages(redis, settings.redis_url, call) == "done"


async def test_a_closed_transport_of_uvloop_is_a_failed_connection() -> None:
    """A connection that Redis had reset made a request fail with 500: uvloop raises RuntimeError, not OSError."""
    retry = ReconnectingRetry(ExponentialBackoff(cap=0.01, base=0.01), 3, supported_errors=(RedisConnectionError,))
    calls = []

    async def command() -> str:
        calls.append("call")
        if len(calls) == 1:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        return "done"

    async def fail(error: Exception) -> None:
        calls.append("reconnect")

    assert await retry.call_with_retry(command, fail) == "done" and calls == ["call", "reconnect", "call"]
