"""A connection that many commands share: each is sent at once, and the replies come in the same order.

redis-py takes a connection for each command and gives it back after the reply, with locks, tasks and timeouts of
its own.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import hiredis
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from server.background import SingleFlight
from server.queue.connection.patience import Patience
from server.queue.connection.raw_connection import NOTHING, RawConnection
from server.queue.connection.retry import ReconnectingRetry, needs_another_connection

#: A connection that was idle this long may be dead without a sign, because firewalls forget it: the next command takes
#: another one, which the pool checks. Shorter than the pool's own health checks.
IDLE_S = 10.0


class SharedConnection:
    """Sends commands that do not block and are safe to repeat over one connection of a pool.

    It is opened by the first command, and again after it was lost or the pool was dropped. `block_s` is how long its
    commands may block.
    """

    def __init__(self, pool: Any, retry: ReconnectingRetry, block_s: float = 0.0) -> None:
        self._pool, self._block_s = pool, block_s
        self._link: _Link | None = None
        self._replaced: set[_Link] = set()  # until they owe no reply
        self._opening = SingleFlight(self._open)
        self._retry = retry

    async def call(self, command: tuple[str | bytes | float, ...], *, decode: bool = True) -> Any:
        """Send a command and return its reply, as text or, without `decode`, as bytes.

        Raises:
            RedisError: the reply is an error, or there was none after the retries.
        """
        packed, link = hiredis.pack_command(cast(Any, command)), self._link
        if link is None or not link.serves(self._retry.drops):
            return await self._run(lambda link: link.send(packed, decode=decode))
        try:
            return await link.send(packed, decode=decode)
        except (RedisError, RuntimeError) as error:
            return await self._repeat(lambda link: link.send(packed, decode=decode), error, link)

    async def call_together(self, commands: Sequence[tuple[str | bytes | float, ...]]) -> list[Any]:
        """Send commands one after the other over one connection; return their replies, errors among them.

        Raises:
            RedisError: the connection failed, or its server is no primary any more, even after the retries.
        """
        packed = [hiredis.pack_command(cast(Any, command)) for command in commands]

        async def send(link: "_Link") -> list[Any]:
            replies = await asyncio.gather(*[link.send(each, decode=True) for each in packed], return_exceptions=True)
            for reply in replies:
                if isinstance(reply, BaseException) and needs_another_connection(reply):
                    raise reply
            return replies

        return cast("list[Any]", await self._run(send))

    async def _run(self, send: Callable[["_Link"], Awaitable[Any]]) -> Any:
        link: _Link | None = None
        try:
            link = await self._usable()
            return await send(link)
        except (RedisError, RuntimeError) as error:
            return await self._repeat(send, error, link)

    async def _repeat(self, send: Callable[["_Link"], Awaitable[Any]], error: Exception, failed: "_Link | None") -> Any:
        """Treat an error of the first attempt, over the link `failed` if one could be opened, as that of a retry."""
        first, link = [error], failed

        async def attempt() -> Any:
            nonlocal link
            if first:
                raise first.pop()
            link = None  # if none can be opened
            link = await self._usable()
            return await send(link)

        async def leave(_: Exception) -> None:
            if link is not None:  # the one that failed: others may have opened the next one by now
                link.retire()  # not lost: the other commands under way learn their own reasons

        return await self._retry.call_with_retry(attempt, leave)

    async def close(self) -> None:
        """Close the connection; commands under way fail."""
        await self._opening.settle()
        for link in (*self._replaced, *([] if self._link is None else [self._link])):
            link.lose(ConnectionError("the client was closed"))
            await link.closed()
        self._link = None

    async def _usable(self) -> "_Link":
        if self._link is not None and self._link.serves(self._retry.drops):
            return self._link
        return await self._opening.run()

    async def _open(self) -> "_Link":
        drops = self._retry.drops
        connection = await self._pool.get_connection()
        try:
            await connection.check_health()
            link = _Link(self._pool, connection, drops, self._pool.timeout_s + self._block_s)
        except BaseException:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
        self._replaced = {other for other in self._replaced if other.lost is None}
        if self._link is not None:
            self._link.retire()
            self._replaced.add(self._link)
        self._link = link
        return link


class _Link(RawConnection):
    """One connection in use, with the replies that it owes."""

    def __init__(self, pool: Any, connection: Any, drops: int, timeout_s: float) -> None:
        self._drops, self._timeout_s = drops, timeout_s
        self._owed: deque[tuple[asyncio.Future[Any], bool]] = deque()
        self._patience = Patience(timeout_s)  #: begins when Redis owed nothing, and whenever it sends something
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # time of the loop; not the timer's: uvloop gives one of less than half a millisecond none
        self._retired = False
        super().__init__(pool, connection)

    def serves(self, drops: int) -> bool:
        """Return whether the next command may go here."""
        if self.lost is not None or self._retired or self._drops != drops:
            return False
        return bool(self._owed) or self._loop.time() - self._patience.began < IDLE_S

    def send(self, packed: bytes, *, decode: bool) -> "asyncio.Future[Any]":
        """Send a command, and return the future of its reply."""
        reply: asyncio.Future[Any] = self._loop.create_future()
        if not self.usable:
            reply.set_exception(ConnectionError("the connection was closed"))
            return reply
        if not self._owed:
            self._patience.restart()
            if self._timer is None:
                self._wait(self._timeout_s)
        self._owed.append((reply, decode))
        self.write(packed)
        return reply

    def retire(self) -> None:
        """Close the connection once it owes no reply."""
        self._retired = True
        if not self._owed:
            self.lose(ConnectionError("the connection was replaced"))

    def replies_arrived(self) -> None:
        self._patience.restart()
        while self._owed:
            reply, decode = self._owed[0]
            value = self._replies.gets(decode)
            if value is NOTHING:
                return
            self._owed.popleft()
            if reply.done():  # canceled meanwhile
                continue
            if isinstance(value, RedisError):
                reply.set_exception(value)
            else:
                reply.set_result(value)
        if self._replies.gets(False) is not NOTHING:  # or the next command would take it for its own
            raise ConnectionError("Redis sent a reply to no command")
        if self._retired:
            self.lose(ConnectionError("the connection was replaced"))

    def ended(self, error: Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        kind = TimeoutError if isinstance(error, TimeoutError) else ConnectionError
        for reply, _ in self._owed:
            if not reply.done():
                reply.set_exception(kind(str(error)))
        self._owed.clear()

    def _wait(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        """Give up a Redis that is silent although it owes a reply, unless the event loop itself was late."""
        self._timer = None
        if not self._owed:
            return
        left_s = self._patience.began + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._wait(left_s)
        elif self._patience.begin_again(self._due):
            self._wait(self._timeout_s)
        else:
            self.lose(TimeoutError("Timeout reading from Redis"))
