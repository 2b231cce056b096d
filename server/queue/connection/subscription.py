"""A pub/sub subscription that detects a dead connection, which to a subscriber looks like a quiet one."""

import asyncio
import secrets
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

#: After this much silence a message is published to the subscription itself; if it does not arrive within ECHO_S, the
#: connection is given up. A PING would only show that some server answers: perhaps one that was the primary once.
PING_AFTER_S = 3.0
ECHO_S = 2.0


class Subscription:
    """Messages of some channels, as an async context manager. After an error the caller opens another one."""

    def __init__(self, redis: Any, *channels: str) -> None:
        self._redis = redis
        self._echo = f"{channels[0]}:echo:{secrets.token_hex(8)}"
        self._channels = (*channels, self._echo)
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
            await self._redis.publish(self._echo, "")
        if self._pinged_at is not None and _now() - self._pinged_at > ECHO_S:
            raise RedisConnectionError(f"a message did not arrive within {ECHO_S:g} s")
        message = await self._pubsub.get_message(timeout=timeout_s)
        if message is None or message["type"] != "message":
            return None
        self._heard_at, self._pinged_at = _now(), None
        return None if message["channel"] == self._echo else (message["channel"], message["data"])


def _now() -> float:
    return asyncio.get_running_loop().time()
