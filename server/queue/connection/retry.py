"""What a failed command does: it is repeated at once where that may help, and stale connections are dropped."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from redis.asyncio.retry import Retry
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

T = TypeVar("T")
#: Between two drops of the pool: commands that fail together would drop each other's new connections.
DROP_EVERY_S = 0.5


class ReconnectingRetry(Retry):
    """Retries at once what may succeed at once: a failed connection, and a write that a demoted primary refused, which
    a new connection may take to the new one. Not a refused password, nor a timeout, which would double the wait.

    One failed connection says something about the others: after a failover all of them lead to the old primary, and
    behind a firewall that has forgotten them all of them are silent. So a refused write or a timeout drops the pool.
    """

    pool: Any = None  #: whose connections are dropped
    drops = 0  #: how often the pool was dropped
    demotions = 0  #: how often the pool was dropped because of a demoted primary
    _dropped_at = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReconnectingRetry":
        """Return this retry itself: redis-py copies it for each connection, but the drops are those of the pool."""
        return self

    async def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        async def do_once() -> Any:
            try:
                return await do()
            except TimeoutError:
                await self._drop_pool()
                raise
            except ConnectionError as error:
                # To redis-py a refused password is a failed connection, or the cause of one.
                refused = next((each for each in causes(error) if isinstance(each, AuthenticationError)), None)
                if refused is not None:
                    raise _Refused(refused) from error
                if isinstance(error.__context__, ReadOnlyError):  # that is how redis-py's client of Sentinel puts it
                    await self.leave_primary()
                    raise _Demoted(error.__context__) from error
                raise
            except ResponseError as error:
                if not is_read_only(error):
                    raise
                await self.leave_primary()
                raise _Demoted(error) from error
            except RuntimeError as error:
                if "handler is closed" not in str(error):
                    raise
                # uvloop's word for a connection that its peer has reset; redis-py expects an OSError.
                raise ConnectionError("the connection was closed") from error

        try:
            return await super().call_with_retry(do_once, fail, *args, **options)
        except _Refused as refused:
            raise refused.error from None
        except _Demoted as demoted:
            raise demoted.error from None

    async def leave_primary(self) -> None:
        """Drop the connections, subscriptions too: their server is no longer the primary."""
        if await self._drop_pool():
            self.demotions += 1

    async def _drop_pool(self) -> bool:
        """Close the idle connections, and the others once they are released; False if that was just done."""
        if self.pool is None or time.monotonic() - self._dropped_at < DROP_EVERY_S:
            return False
        self._dropped_at = time.monotonic()
        self.drops += 1
        with suppress(RedisError, OSError):
            await self.pool.disconnect(inuse_connections=False)
        if mark := getattr(self.pool, "update_active_connections_for_reconnect", None):  # not in old redis-py
            await mark()
        return True


async def through_outages(call: Callable[[], Awaitable[T]], deadline: float, every_s: float) -> T:
    """Repeat a call of the queue, which must be safe to repeat, until Redis answers.

    Args:
        deadline: on the monotonic clock; the first attempt is made even after it.
    Raises:
        RedisError: that of an attempt that ended after the deadline.
    """
    while True:
        try:
            return await call()
        except RedisError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(every_s)


def is_read_only(error: BaseException) -> bool:
    """Return whether a replica refused a write, or a demoted primary ended a wait for replicas; inside a script
    redis-py may have no class for it."""
    return isinstance(error, ReadOnlyError) or str(error).startswith(("READONLY ", "UNBLOCKED "))


def needs_another_connection(error: BaseException) -> bool:
    """Return whether the error is about the connection or its server, and not about the command."""
    return isinstance(error, ConnectionError | TimeoutError) or is_read_only(error)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it; redis-py wraps what a new connection is told into a ConnectionError."""
    while error is not None:
        yield error
        error = error.__cause__


class _Refused(Exception):
    """Carries an error past the retries."""

    def __init__(self, error: AuthenticationError) -> None:
        super().__init__()
        self.error = error


class _Demoted(ConnectionError):
    """Makes redis-py reconnect and repeat a write that a replica refused."""

    def __init__(self, error: ResponseError) -> None:
        super().__init__(str(error))
        self.error = error
