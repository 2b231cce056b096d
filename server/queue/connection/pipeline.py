"""A Redis client whose errors quote no arguments of commands: they are prompts and files, and errors are logged."""

from collections.abc import Iterable
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


class ServiceRedis(Redis):
    """A client that makes such pipelines, and sends small commands over one shared connection."""

    shared: SharedConnection | None = None

    async def call(self, *command: str | bytes | int, decode: bool = True) -> Any:
        """Run a command that does not block, is safe to repeat, and neither carries nor returns much: it delays others.

        Raises:
            RedisError: as the methods of redis-py do.
        """
        if self.shared is None:
            self.shared = SharedConnection(self.connection_pool, cast(ReconnectingRetry, self.get_retry()))
        return await self.shared.call(command, decode=decode)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        if self.shared is not None:
            await self.shared.close()
        await super().aclose(close_connection_pool)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return ServicePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
