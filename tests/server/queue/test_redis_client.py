"""The Redis client under a crowd."""

import asyncio

import pytest

from server.queue.redis_client import QUICK_TIMEOUT_S, connect
from server.settings import Settings

pytestmark = pytest.mark.anyio


async def test_a_crowd_finds_a_connection_each(settings: Settings) -> None:
    """redis-py 8 allows 100 connections and raises beyond: the 101st simultaneous caller of a gateway got 503."""
    async with connect(settings.redis_url, QUICK_TIMEOUT_S) as redis:
        assert all(await asyncio.gather(*(redis.ping() for _ in range(300))))
