"""A connection of redis-py's pool without its streams: replies are parsed where they arrive.

A StreamReader would wake a task for each reply, which then parses it and wakes the task that waits for it.
"""

import asyncio
from contextlib import suppress
from typing import Any

import hiredis
from redis.exceptions import ConnectionError, InvalidResponse, RedisError

NOTHING = object()


class RawConnection(asyncio.Protocol):
    """Takes over a connected connection of a pool, and gives it back closed once it is lost."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self.lost: Exception | None = None  #: why the connection is of no use any more
        self._pool, self._connection = pool, connection
        self._loop = asyncio.get_running_loop()
        self._replies = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            encoding="utf-8",
            errors="replace",
            notEnoughData=NOTHING,
        )
        self._ending: asyncio.Task[None] | None = None
        self._transport: Any = connection._writer.transport
        self._streams = self._transport.get_protocol()
        self._transport.set_protocol(self)
        if connection._reader.at_eof():
            self.lose(ConnectionError("Connection closed by server."))

    def replies_arrived(self) -> None:
        """Read what `self._replies` has, which may be no complete reply. RedisError: the connection is lost."""
        raise NotImplementedError

    def ended(self, error: Exception) -> None:
        """Fail whatever waits for a reply."""
        raise NotImplementedError

    @property
    def usable(self) -> bool:
        return self.lost is None and not self._transport.is_closing()

    def write(self, packed: bytes) -> None:
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        if self.lost is not None:
            return
        try:
            self._replies.feed(data)
            self.replies_arrived()
        except RedisError as error:
            self.lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(error or ConnectionError("Connection closed by server."))
        self._streams.connection_lost(error)  # redis-py's writer waits for it when it closes

    def lose(self, error: Exception) -> None:
        """Close the connection; whatever waits for a reply gets the first error."""
        if self.lost is None:
            self.lost = error
            self.ended(error)
            self._ending = self._loop.create_task(self._give_back())

    async def closed(self) -> None:
        """Wait until a lost connection is back in its pool."""
        if self._ending is not None:
            await asyncio.wait((self._ending,))

    async def _give_back(self) -> None:
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)
        await self._pool.release(self._connection)
