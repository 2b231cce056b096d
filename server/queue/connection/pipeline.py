"""A Redis client whose errors quote no arguments of commands: they are prompts and files, and errors are logged."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from server.queue.connection.retry import ReconnectingRetry
from server.queue.connection.shared import SharedConnection


class ServicePipeline(Pipeline):
    """redis-py quotes the first 100 characters of the command that failed; this names it alone."""

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        name = next(iter(command), "")
        exception.args = (f"{name!s}, command {number} of a pipeline: {exception}", *exception.args[1:])


#: Runs one read. A script with a `#!lua` line that may write is refused by replicas.
_BY_A_PRIMARY = "#!lua flags=allow-oom\nreturn redis.call(ARGV[1], KEYS[1])"


class ServiceRedis(Redis):
    """A client that makes such pipelines, and sends small commands over one shared connection."""

    _shared: SharedConnection | None = None
    _connections: tuple[SharedConnection, ...] = ()

    async def call(self, *command: str | bytes | int, decode: bool = True) -> Any:
        """Run a command that does not block, is safe to repeat, and neither carries nor returns much: it delays others.

        Raises:
            RedisError: as the methods of redis-py do.
        """
        if self._shared is None:
            self._shared = self.own_connection()
        return await self._shared.call(command, decode=decode)

    async def confirm(self, command: str, key: str, *, decode: bool = True) -> Any:
        """Repeat a read that found nothing where only a primary answers. A connection that outlived a failover leads to
        a replica, which may lag: its word that there is no such job would reach the client as a 404."""
        options = {} if decode else {"NEVER_DECODE": True}
        return await self.execute_command("EVAL", _BY_A_PRIMARY, 1, key, command, **options)  # type: ignore[no-untyped-call]

    async def transaction_of(self, commands: Sequence[tuple[str | bytes | float, ...]]) -> None:
        """Run small commands as one transaction over the shared connection; their replies are dropped.

        Raises:
            RedisError: as `call`, or the first error of a command.
        """
        if self._shared is None:
            self._shared = self.own_connection()
        replies = await self._shared.call_together([("MULTI",), *commands, ("EXEC",)])
        results = replies[-1] if isinstance(replies[-1], list) else []
        for reply in (*replies, *results):
            if isinstance(reply, Exception):
                raise reply

    async def follow_primary(self) -> None:
        """Drop the connections if they lead to a former primary, where anything but their errors can tell."""

    def own_connection(self, block_s: float = 0.0) -> SharedConnection:
        """Make a connection for the caller's own commands; it closes with the client. Each may block for `block_s`, and
        beside that for less than the client waits for an answer."""
        made = SharedConnection(self.connection_pool, cast(ReconnectingRetry, self.get_retry()), block_s)
        self._connections += (made,)
        return made

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for each in self._connections:
            await each.close()
        await super().aclose(close_connection_pool)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return ServicePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
