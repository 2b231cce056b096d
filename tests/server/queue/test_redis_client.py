"""The Redis client under many concurrent callers."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from server.queue.redis_client import connect, outlast_outages
from server.settings import Settings

pytestmark = pytest.mark.anyio


async def test_three_hundred_concurrent_commands_get_a_connection_each(settings: Settings) -> None:
    """redis-py 8 allows 100 connections and raises beyond: the 101st concurrent caller used to get a 503.

    The timeout is long, because on a busy machine 300 connections take longer than a gateway gives one command.
    """
    async with connect(settings.redis_url, 30.0) as redis:
        assert all(await asyncio.gather(*(redis.ping() for _ in range(300))))


async def test_a_start_outlasts_an_outage(settings: Settings) -> None:
    """A worker that started while Redis was away for longer than a lease ended with a traceback."""
    failures = [RedisConnectionError("gone"), RedisConnectionError("still gone")]

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    async with connect(settings.redis_url, 30.0) as redis:
        assert await outlast_outages(redis, settings.redis_url, call) == "done"
