"""Writes that count once replicas of Redis have them on disk (FLUID_REPLICAS), many to one wait.

WAITAOF waits for what its own connection has written, up to that moment, and blocks the connection meanwhile. So these
writes have a connection to themselves. While one group of them waits, the next one gathers: a wait costs the same for
one as for a hundred. Each group ends with a write of its own, because a script that finds its job accepted before
writes nothing, and because WAITAOF does not wait for writes of an earlier connection; everything that this server
accepted before that write reaches the replicas before it. A group that loses its connection is sent again as a whole,
so that its wait and its writes are never on different servers.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError, ResponseError

from server.errors import NotReplicated
from server.queue.connection.pipeline import ServiceRedis

GROUP = 256  #: most commands that share a wait
MARK_MS = 60_000
Command = tuple[str | bytes | float, ...]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How many copies of a write there are: on how many replicas, and whether on disk (WAITAOF) or in memory (WAIT)."""

    replicas: int
    on_disk: bool
    trouble: str = ""  #: why the server cannot tell


class ReplicatedWrites:
    """Commands over one connection that succeed once `replicas` replicas have what they wrote."""

    def __init__(self, redis: ServiceRedis, mark: str, replicas: int, timeout_s: float) -> None:
        """`mark` is a key to write, which nothing reads."""
        self.replicas, self.timeout_s = replicas, timeout_s
        self._redis, self._mark = redis, mark
        self._connection = redis.own_connection(timeout_s) if replicas else None
        self._waiting: list[tuple[Command, asyncio.Future[tuple[Any, Confirmation]]]] = []
        self._task: asyncio.Task[None] | None = None
        self._has_waitaof = True

    async def call(self, *command: str | bytes | float) -> Any:
        """Run a command that is safe to repeat, and return its reply.

        Raises:
            NotReplicated: too few replicas have what it wrote. RedisError: it failed, or Redis did.
        """
        reply, confirmed = await self._send(command)
        if isinstance(reply, Exception):
            raise reply
        if confirmed.replicas < self.replicas or confirmed.trouble:
            raise NotReplicated(confirmed.trouble or self._too_few(confirmed), retry_after_s=1)
        return reply

    async def confirm(self, key: str) -> None:
        """Return once the replicas have a key that another connection wrote.

        Raises:
            NotReplicated: they do not, or the key is gone, which a failover may have lost. RedisError: Redis failed.
        """
        if self.replicas and not await self.call("EXISTS", key):
            raise NotReplicated("A failover of Redis lost what was stored.", retry_after_s=1)

    async def probe(self) -> Confirmation:
        """Write something, wait for the replicas, and return what they confirmed.

        Raises:
            RedisError: Redis failed.
        """
        reply, confirmed = await self._send(("PING",))
        if isinstance(reply, Exception):
            raise reply
        return confirmed

    def _too_few(self, confirmed: Confirmation) -> str:
        return (
            f"{confirmed.replicas} of {self.replicas} replicas of Redis (FLUID_REPLICAS) had the request within "
            f"{self.timeout_s:g} s (FLUID_REPLICA_TIMEOUT_S)."
        )

    async def _send(self, command: Command) -> tuple[Any, Confirmation]:
        done: asyncio.Future[tuple[Any, Confirmation]] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send_all())
        return await done

    async def _send_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            try:
                replies, confirmed = await self._send_group([command for command, _ in group])
            except Exception as error:
                for _, done in group:
                    if not done.done():  # canceled meanwhile
                        done.set_exception(error)
                continue
            for (_, done), reply in zip(group, replies, strict=True):
                if not done.done():
                    done.set_result((reply, confirmed))

    async def _send_group(self, commands: list[Command]) -> tuple[list[Any], Confirmation]:
        if self._connection is None:
            raise RuntimeError("FLUID_REPLICAS is 0: there is nothing to wait for")
        await self._redis.follow_primary()
        mark: Command = ("SET", self._mark, "1", "PX", MARK_MS)
        replies = await self._connection.call_together([*commands, mark, *self._waits()])
        marked, confirmed = replies[len(commands)], replies[-1]
        replies = replies[: len(commands)]
        if isinstance(marked, RedisError):  # without a write there is nothing to wait for
            raise marked
        if isinstance(confirmed, ResponseError) and self._has_waitaof and "unknown command" in str(confirmed).lower():
            self._has_waitaof = False
            return await self._send_group(commands)
        if isinstance(confirmed, ResponseError):
            return replies, Confirmation(0, self._has_waitaof, _trouble(confirmed))
        if not self._has_waitaof:
            return replies, Confirmation(int(confirmed), on_disk=False)
        local, replicas = map(int, confirmed)
        return replies, Confirmation(replicas, True, "" if local else "Redis has not written it to its own disk yet.")

    def _waits(self) -> list[Command]:
        """The commands that wait for the replicas, of which the last one tells how many have the group.

        A replica tells what it has on disk when it is asked, which each WAITAOF does once, and once a second. The first
        question overtakes the replica's own fsync; without others the wait took up to a second. Once one of these
        commands has what it waits for, those after it answer at once.
        """
        left_ms = max(1, round(self.timeout_s * 1000))
        if not self._has_waitaof:
            return [("WAIT", self.replicas, left_ms)]
        waits, wait_ms = list[Command](), 1
        while left_ms > 0:
            wait_ms = min(wait_ms, left_ms)
            waits.append(("WAITAOF", 1, self.replicas, wait_ms))
            left_ms, wait_ms = left_ms - wait_ms, 2 * wait_ms
        return waits


def _trouble(error: ResponseError) -> str:
    if "appendonly is disabled" in str(error):
        return "Redis keeps no append-only file, and WAITAOF waits for that: set appendonly yes, on its replicas too."
    return f"Redis does not wait for replicas ({error})."
