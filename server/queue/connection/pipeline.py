"""A Redis client whose errors quote no arguments of commands: they are prompts and files, and errors are logged."""

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline


class ServicePipeline(Pipeline):
    """redis-py quotes the first 100 characters of the command that failed; this names it alone."""

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        name = next(iter(command), "")
        exception.args = (f"{name!s}, command {number} of a pipeline: {exception}", *exception.args[1:])


class ServiceRedis(Redis):
    """A client that makes such pipelines."""

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return ServicePipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
