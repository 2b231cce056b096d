"""Bounded pools of connections: commands wait for one in turn, as long as Redis answers."""

import asyncio
from typing import Any

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.queue.connection.patience import LATE_S, LONGEST_S, Patience, patient

#: Redis serves its connections one after another, so that more of them make nothing faster, and each costs a handshake
#: and memory: with one per request in flight, 80 of 3,121 answers were 503 at 512 requests.
MAX_CONNECTIONS = 64
#: Limit of redis-py's own, which raises instead of waiting. Far above ours: redis-py forgets a connection whose task is
#: canceled twice at the wrong moment.
NEVER_REACHED = 4096


class _Waiting:
    """Part of a pool: at most MAX_CONNECTIONS in use. Further commands wait, first come, first served.

    Once Redis has not answered for `timeout_s`, and a command under way has failed, those that wait get an error too:
    with a timeout of their own each, they would get it late when Redis is silent, and without cause when it is busy.
    """

    def __init__(self, *names: Any, timeout_s: float, connection_class: type[Any], **options: Any) -> None:
        super().__init__(  # type: ignore[call-arg]  # of the pool that this is a part of
            *names,
            connection_class=patient(connection_class),
            max_connections=NEVER_REACHED,
            answer_timeout_s=timeout_s,
            socket_timeout=max(LONGEST_S, timeout_s) + 1,  # for what is sent
            socket_connect_timeout=max(LONGEST_S, timeout_s) + 1,
            **options,
        )
        self.timeout_s = timeout_s  #: how long Redis may be silent while it owes an answer
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._holding: set[Any] = set()
        self._answered_at = self._failed_at = 0.0

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection to use, which `release` takes back.

        Raises:
            RedisTimeoutError: none became free, and Redis has not answered for `timeout_s`.
        """
        if self._slots.locked():
            await self._wait_for_slot()
        else:
            await self._slots.acquire()  # without a pause
        try:
            connection = await super().get_connection(*args, **options)  # type: ignore[misc]
        except BaseException:
            self._slots.release()
            raise
        self._holding.add(connection)
        return connection

    async def release(self, connection: Any) -> None:
        """Take back a connection. One that failed was disconnected by then."""
        if connection.is_connected:
            self._answered_at = asyncio.get_running_loop().time()
        else:
            self._failed_at = asyncio.get_running_loop().time()
        held = connection in self._holding  # not if it failed to connect
        self._holding.discard(connection)
        try:
            await super().release(connection)  # type: ignore[misc]
        finally:
            if held:
                self._slots.release()

    async def _wait_for_slot(self) -> None:
        loop = asyncio.get_running_loop()
        patience, waiting = Patience(self.timeout_s), asyncio.create_task(self._slots.acquire())
        try:
            while not waiting.done():
                left_s = max(patience.began, self._answered_at) + self.timeout_s - loop.time()
                if left_s <= 0 and self._failed_at > self._answered_at:
                    raise RedisTimeoutError("Timeout waiting for a connection, and Redis does not answer")
                left_s = max(left_s, LATE_S)
                due = loop.time() + left_s
                await asyncio.wait((waiting,), timeout=left_s)
                patience.begin_again(due)  # if late: what the others were answered has not been read yet
        except BaseException:
            if not waiting.cancel():
                self._slots.release()
            raise


class WaitingPool(_Waiting, ConnectionPool):
    """Connections to one Redis."""

    def __init__(self, *, connection_class: type[Any] = Connection, **options: Any) -> None:
        super().__init__(connection_class=connection_class, **options)


class WaitingSentinelPool(_Waiting, SentinelConnectionPool):
    """Connections to the primary that Sentinel names."""

    def __init__(self, service: str, sentinel: Any, *, ssl: bool = False, **options: Any) -> None:
        connection_class = SentinelManagedSSLConnection if ssl else SentinelManagedConnection
        super().__init__(service, sentinel, connection_class=connection_class, **options)
