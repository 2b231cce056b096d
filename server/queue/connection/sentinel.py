"""A client that asks Redis Sentinel for the primary whenever it connects."""

import time
from typing import Any

from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.addresses import SentinelUrl
from server.queue.connection.pipeline import ServiceRedis
from server.queue.connection.pool import WaitingSentinelPool

#: A Sentinel that does not answer is skipped; the gateway has less than a second for all of them.
TIMEOUT_S = 0.3
CHECK_S = 1.0
UNKNOWN_S = 5.0


class SentinelRedis(ServiceRedis):
    """A client of the primary. It asks again every CHECK_S: Sentinel demotes a former primary about ten seconds after
    it has appointed a new one, and what the former one accepts until then is lost."""

    sentinel: Any
    connection_pool: Any
    _check_at = 0.0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        await self.follow_primary()
        execute: Any = super().execute_command
        return await execute(*args, **options)

    async def call(self, *command: str | bytes | int, decode: bool = True) -> Any:
        await self.follow_primary()
        return await super().call(*command, decode=decode)

    async def follow_primary(self) -> None:
        """Drop the connections if Sentinel has appointed another primary since they were opened."""
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + CHECK_S
        known = self.connection_pool.master_address
        try:
            now = await self.connection_pool.get_master_address()
        except RedisError:  # no Sentinel answers, or none knows a primary: what is connected stays connected
            self._check_at = time.monotonic() + UNKNOWN_S
            return
        if known is not None and now != known:
            retry: Any = self.get_retry()
            await retry.leave_primary()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for client in self.sentinel.sentinels:
            await client.aclose()


def connect_by_sentinel(url: str, **options: Any) -> SentinelRedis:
    """Create the client. `options` are those of a connection to Redis; the URL's own go before them.

    `sentinel_username` and `sentinel_password` among the URL's options are for the Sentinels.

    Raises:
        ValueError: the URL has an option with a value that redis-py cannot use.
    """
    parts = SentinelUrl.parse(url)
    options |= {name: value for name, value in parse_url(parts.redis_url).items() if name not in ("host", "port")}
    options.pop("connection_class", None)  # that of TLS, which `ssl` chooses
    credentials: dict[str, Any] = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    limits: dict[str, Any] = {
        name: options[name] for name in ("socket_keepalive", "socket_keepalive_options") if name in options
    }
    create: Any = Sentinel  # untyped
    sentinel = create(
        parts.hosts,
        sentinel_kwargs={
            **credentials,
            **limits,
            "socket_timeout": TIMEOUT_S,
            "socket_connect_timeout": TIMEOUT_S,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    client: SentinelRedis = sentinel.master_for(
        parts.service,
        redis_class=SentinelRedis,
        connection_pool_class=WaitingSentinelPool,
        ssl=parts.tls,
        **options,
    )
    client.sentinel = sentinel
    return client
