"""A pub/sub subscription that detects a dead connection: to a subscriber, a silent connection looks like a quiet one."""

import asyncio
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

#: A connection that has been silent this long is pinged, and given up if nothing comes back within PONG_S.
PING_AFTER_S = 3.0
PONG_S = 2.0


class Subscription:
    """Messages of some channels, as an async context manager. After an error the caller opens another one."""

    def __init__(self, redis: Any, *channels: str) -> None:
        self._redis = redis
        self._channels = channels
        self._retry = redis.get_retry()
        self._demotions = self._retry.demotions
        self._pubsub: Any = None
        self._heard_at = 0.0
        self._pinged_at: float | None = None

    async def __aenter__(self) -> "Subscription":
        self._pubsub = self._redis.pubsub()
        try:
            await self._pubsub.subscribe(*self._channels)
        except BaseException:
            await self._pubsub.aclose()
            raise
        self._heard_at = _now()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pubsub.aclose()

    async def get(self, timeout_s: float) -> tuple[str, str] | None:
        """Wait for the next message: (channel, text); None after `timeout_s` or something that is no message.

        Raises:
            RedisError: the connection failed, fell silent, or leads to a primary that was demoted.
        """
        if self._retry.demotions != self._demotions:
            raise RedisConnectionError("the primary was demoted")
        if self._pinged_at is None and _now() - self._heard_at > PING_AFTER_S:
            self._pinged_at = _now()
            await self._pubsub.ping()
        if self._pinged_at is not None and _now() - self._pinged_at > PONG_S:
            raise RedisConnectionError(f"a ping was not answered within {PONG_S:g} s")
        message = await self._pubsub.get_message(timeout=timeout_s)
        if message is None:
            return None
        self._heard_at, self._pinged_at = _now(), None
        return (message["channel"], message["data"]) if message["type"] == "message" else None


def _now() -> float:
    return asyncio.get_running_loop().time()
