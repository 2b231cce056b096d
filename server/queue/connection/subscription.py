"""A pub/sub subscription that detects a dead connection, which to a subscriber looks like a quiet one."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.background import wait_at_most
from server.queue.connection.patience import AnswerWithin
from server.queue.connection.raw_connection import NOTHING, RawConnection

#: After this much silence a message is published to the subscription itself; if it does not arrive within ECHO_S, the
#: connection is given up. A PING would only show that some server answers: perhaps one that was the primary once.
PING_AFTER_S = 3.0
ECHO_S = 2.0
CHECK_S = 1.0
OnMessage = Callable[[str, bytes], None]  # channel, message


class Subscription:
    """Calls a function with each message of some channels, in the block of an async context manager. After an error
    the caller opens another one."""

    def __init__(self, redis: Any, on_message: OnMessage, *channels: str) -> None:
        self._redis, self._on_message = redis, on_message
        self._echo = f"{channels[0]}:echo:{secrets.token_hex(8)}"
        self._channels = (*channels, self._echo)
        self._retry = redis.get_retry()
        self._demotions = self._retry.demotions
        self._receiver: _Receiver | None = None

    async def __aenter__(self) -> "Subscription":
        pool = self._redis.connection_pool
        connection = await pool.get_connection()
        self._receiver = _Receiver(pool, connection, self._channels, self._pass_on)
        try:
            async with AnswerWithin(pool.timeout_s):
                await self._receiver.subscribed
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout subscribing to Redis") from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._receiver is not None
        self._receiver.lose(RedisConnectionError("the subscription ended"))
        await self._receiver.closed()

    async def watch(self) -> None:
        """Wait until the subscription fails.

        Raises:
            RedisError: the connection failed, fell silent, or leads to a primary that was demoted.
        """
        receiver, pinged_at, sent_at = self._receiver, float("-inf"), float("-inf")
        assert receiver is not None
        while receiver.lost is None:
            now = asyncio.get_running_loop().time()
            if self._retry.demotions != self._demotions:
                raise RedisConnectionError("the primary was demoted")
            if receiver.heard_at < pinged_at and sent_at < now - ECHO_S:
                raise RedisConnectionError(f"a message did not arrive within {ECHO_S:g} s")
            if receiver.heard_at >= pinged_at and now - receiver.heard_at > PING_AFTER_S:
                pinged_at = now
                await self._redis.publish(self._echo, "")
                sent_at = asyncio.get_running_loop().time()  # publishing may have had to reconnect
            await wait_at_most(receiver.bell, CHECK_S)
        raise RedisConnectionError(str(receiver.lost))

    def _pass_on(self, channel: str, message: bytes) -> None:
        if channel != self._echo:
            self._on_message(channel, message)


class _Receiver(RawConnection):
    """The connection of a subscription."""

    def __init__(self, pool: Any, connection: Any, channels: tuple[str, ...], on_message: OnMessage) -> None:
        loop = asyncio.get_running_loop()
        self.bell = asyncio.Event()  #: set when the connection is lost
        self.heard_at = loop.time()  #: time of the last message
        self.subscribed: asyncio.Future[None] = loop.create_future()
        self._missing, self._on_message = len(channels), on_message
        super().__init__(pool, connection)
        if self.usable:
            self.write(hiredis.pack_command(cast(Any, ("SUBSCRIBE", *channels))))

    def replies_arrived(self) -> None:
        while (value := self._replies.gets(False)) is not NOTHING:
            if isinstance(value, RedisError):
                raise value
            kind, channel, message = value
            if kind == b"message":
                self.heard_at = self._loop.time()
                self._on_message(channel.decode(), message)
            elif kind == b"subscribe":
                self._missing -= 1
                if not self._missing and not self.subscribed.done():
                    self.subscribed.set_result(None)

    def ended(self, error: Exception) -> None:
        self.bell.set()
        if not self.subscribed.done():
            self.subscribed.set_exception(error if isinstance(error, RedisError) else RedisConnectionError(str(error)))
