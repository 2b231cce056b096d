"""The Redis client under many concurrent callers."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from server.queue.job_queue import JobQueue
from server.queue.redis_client import connect, outlast_outages
from server.settings import Settings

pytestmark = pytest.mark.anyio


async def test_three_hundred_concurrent_commands_get_a_connection_each(settings: Settings) -> None:
    """redis-py 8 allows 100 connections and raises beyond: the 101st concurrent caller used to get a 503.

    The timeout is long, because on a busy machine 300 connections take longer than a gateway gives one command.
    """
    async with connect(settings.redis_url, 30.0) as redis:
        assert all(await asyncio.gather(*(redis.ping() for _ in range(300))))


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
