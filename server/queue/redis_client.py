"""The Redis client with the timeouts and retries of this service, and what is wrong with a Redis, in words."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from server.addresses import SENTINEL_SCHEMES, without_password
from server.background import RepeatedFailure
from server.errors import ConfigError, SettingError, UnreadableRecord
from server.queue.connection.pipeline import ServiceRedis
from server.queue.connection.pool import WaitingPool
from server.queue.connection.replication import Confirmation, ReplicatedWrites
from server.queue.connection.retry import ReconnectingRetry, causes
from server.queue.connection.sentinel import connect_by_sentinel

log = logging.getLogger(__name__)
#: redis-py annotates every reply as the union of all protocols and decodings, differently in each release.
#: Both are fixed here, and the queue converts what it reads into its own types.
Client = Any
T = TypeVar("T")
#: Few and quick: callers should get their 503 within a second, and every script is safe to repeat.
RETRIES = 3
#: A vanished host neither answers nor closes. Longer than any blocking call (BLPOP blocks for 0.25 s).
SOCKET_TIMEOUT_S = 5.0
#: For the gateway: its callers get 503 within a second when Redis does not answer.
GATEWAY_SOCKET_TIMEOUT_S = 0.9
#: A connection that was idle this long is pinged before it is used.
HEALTH_CHECK_S = 15
#: The kernel gives up a connection whose peer is gone after 10 + 3 * 3 s; firewalls forget those that are idle longer.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}

#: Class of an error, first word of its text where redis-py has no class, how "The queue ..." ends, and the remedy.
_REASONS: tuple[tuple[type[RedisError], str, str, str], ...] = (
    (OutOfMemoryError, "OOM", "is full: Redis has used its maxmemory", "Raise maxmemory, or lower FLUID_RESULT_TTL_S."),
    (ReadOnlyError, "READONLY", "is a read-only replica of Redis", "Set FLUID_REDIS_URL to the primary."),
    (MasterDownError, "MASTERDOWN", "is a replica of Redis that has lost its primary", "Start the primary."),
    (BusyLoadingError, "LOADING", "is loading its data from disk", "Wait."),
    (
        NoPermissionError,
        "NOPERM",
        "refuses a command to this service's user of Redis",
        "Give the user of FLUID_REDIS_URL the ACL of docs/deploy.md.",
    ),
    (
        AuthenticationError,
        "NOAUTH",
        "refuses this service's user or password of Redis",
        "Correct the user and password in FLUID_REDIS_URL.",
    ),
    (
        AskError,
        "MOVED",
        "is on another node of the Redis Cluster",
        "Set FLUID_REDIS_URL to the node that holds the slot of FLUID_NAMESPACE.",
    ),
    (
        MasterNotFoundError,
        "NOMASTER",
        "has no primary that Sentinel knows",
        "Wait for its failover, or correct the hosts and the service in FLUID_REDIS_URL.",
    ),
    (ClusterDownError, "CLUSTERDOWN", "is on a Redis Cluster that is down", "Repair the cluster."),
)
_MORE_REASONS = (
    ("MISCONF", "cannot be written: Redis cannot save to its disk", "Free some space on the disk of Redis."),
    ("NOREPLICAS", "cannot be written: Redis has fewer replicas than it wants", "Start them."),
    ("max number of clients", "is full: Redis has used its maxclients", "Raise maxclients."),
)
_START_REDIS = "Start it, or correct FLUID_REDIS_URL; without that setting `fluid serve` starts an embedded Valkey."
_SEE_LOG = "The text of the error says more."


def explain(error: RedisError) -> tuple[str, str]:
    """Return how a sentence that begins with "The queue" ends, and the operator's remedy.

    Callers may see both: there is no address, user or password in them.
    """
    text, chain = str(error), list(causes(error))
    for kind, word, meaning, remedy in _REASONS:
        if any(isinstance(each, kind) for each in chain) or text.startswith(f"{word} "):
            return meaning, remedy
    for word, meaning, remedy in _MORE_REASONS:
        if word in text:
            return meaning, remedy
    if isinstance(error, ResponseError):
        return "refuses a command", _SEE_LOG
    return "does not answer", _START_REDIS


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a Redis that works against what this service promises."""

    text: str
    remedy: str
    severe: bool = True


async def find_problems(redis: Client, probe_key: str, replicated: ReplicatedWrites | None = None) -> list[Problem]:
    """Write a key, wait for the replicas that should have it, and read the settings of persistence and memory.

    Raises:
        RedisError: Redis does not answer at all.
    """
    found: list[Problem] = []
    try:
        await redis.set(probe_key, "1", px=1000)
    except ResponseError as error:
        meaning, remedy = explain(error)
        found.append(Problem(f"writes fail: the queue {meaning} ({error})", remedy))
    else:
        if replicated is not None and replicated.replicas:
            found += replication_problems(replicated.replicas, await replicated.probe())
    return [*found, *config_problems(await read_config(redis))]


def replication_problems(wanted: int, confirmed: Confirmation) -> Iterator[Problem]:
    """Yield why no request is accepted with FLUID_REPLICAS, or why it promises less than it could."""
    if confirmed.trouble:
        yield Problem(f"no request is accepted (FLUID_REPLICAS): {confirmed.trouble}", "CONFIG SET appendonly yes.")
    elif confirmed.replicas < wanted:
        yield Problem(
            f"no request is accepted: {confirmed.replicas} of {wanted} replicas confirm writes (FLUID_REPLICAS)",
            "Start replicas, each with appendonly yes and appendfsync always.",
        )
    if not confirmed.on_disk:
        yield Problem(
            "Redis has no WAITAOF: FLUID_REPLICAS waits until replicas have a request in memory, not on disk",
            "Use Valkey, or Redis 7.2 or later.",
            severe=False,
        )


async def read_config(redis: Client) -> dict[str, str]:
    """Redis' persistence and memory settings; empty where CONFIG is forbidden, as managed services often do."""
    try:
        return dict(await redis.config_get("append*", "maxmemory*"))
    except ResponseError:
        return {}


async def read_maxmemory(redis: Client) -> int:
    """Bytes that Redis may use; 0 if there is no limit, or INFO is forbidden."""
    try:
        return int((await redis.info("memory")).get("maxmemory", 0))
    except ResponseError:
        return 0


def config_problems(config: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with the settings of persistence and memory."""
    if not config:
        yield Problem(
            "Redis does not allow reading its persistence settings",
            "Ask its operator whether appendfsync is always.",
            severe=False,
        )
        return
    if config.get("appendonly") != "yes":
        yield Problem(
            "Redis does not persist: a restart loses every job",
            "CONFIG SET appendonly yes, then CONFIG SET appendfsync always.",
        )
    elif config.get("appendfsync") != "always":
        yield Problem(
            f"appendfsync is {config.get('appendfsync')}: a crash of Redis' host loses about a second of accepted jobs",
            "CONFIG SET appendfsync always.",
            severe=False,
        )
    if config.get("maxmemory-policy", "noeviction") != "noeviction":
        yield Problem(
            f"maxmemory-policy {config['maxmemory-policy']} lets Redis evict jobs",
            "CONFIG SET maxmemory-policy noeviction.",
        )
    if config.get("maxmemory") == "0":
        yield Problem(
            "Redis has no maxmemory: where memory ends it is killed, instead of refusing jobs",
            "CONFIG SET maxmemory, to half of the memory that Redis may use.",
            severe=False,
        )


def connect(url: str, timeout_s: float) -> Client:
    """Create the client of a process, with replies as text. Protocol 2 is pinned: version 3 changes replies' shape.

    Raises:
        SettingError: the URL has options that redis-py does not know.
    """
    retry = ReconnectingRetry(ExponentialBackoff(cap=0.2, base=0.02), RETRIES, supported_errors=(ConnectionError,))
    try:
        create = connect_by_sentinel if url.partition("://")[0] in SENTINEL_SCHEMES else _connect_directly
        client = create(
            url,
            timeout_s=timeout_s,
            decode_responses=True,
            encoding_errors="replace",  # a field of bytes in a newer version's record must not fail the whole reply
            protocol=2,
            retry=retry,
            health_check_interval=HEALTH_CHECK_S,
            **({} if url.startswith("unix:") else _keepalive()),
        )
        pool = retry.pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # unknown options would be found by the first command only
    except (TypeError, ValueError, AttributeError):  # what they say may quote a part of a password
        raise SettingError(
            "FLUID_REDIS_URL has an option that Redis' client does not know, or a value that it cannot use: correct "
            "what follows the question mark."
        ) from None
    return client


def _connect_directly(url: str, **options: Any) -> ServiceRedis:
    client: ServiceRedis = cast(Any, ServiceRedis).from_pool(WaitingPool.from_url(url, **options))
    return client


def _keepalive() -> dict[str, Any]:
    """Options of a TCP connection; a platform may lack some of the kernel's."""
    known = {getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)}
    return {"socket_keepalive": True, "socket_keepalive_options": known}


async def wait_until_up(redis: Client, url: str) -> None:
    """Return once Redis answers; log a reason once, not with every attempt.

    Raises:
        ConfigError: Redis refuses the user or password, which no retry can cure.
    """
    address, failure = without_password(url), RepeatedFailure(log)
    while True:
        try:
            await redis.ping()
            return
        except AuthenticationError as error:
            raise ConfigError(f"Redis at {address} refuses the user or password of FLUID_REDIS_URL.") from error
        except RedisError as error:
            failure.warn(f"waiting for Redis at {address}: {error}")
            await asyncio.sleep(0.5)


async def outlast_outages(redis: Client, url: str, call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call of a process that starts, and has nothing to lose yet, until Redis answers it.

    Raises:
        ConfigError: as `wait_until_up` does.
    """
    while True:
        await wait_until_up(redis, url)
        try:
            return await call()
        except RedisError as error:
            log.warning("Redis: %s; trying again", error)
            await asyncio.sleep(0.5)


async def read_hash(redis: Client, key: str, what: str) -> dict[str, str]:
    """The fields of a hash, none if a primary has no such key.

    Raises:
        UnreadableRecord: the key holds another type. `what` names the record.
    """
    try:
        flat = cast("list[str]", await redis.call("HGETALL", key) or await redis.confirm("HGETALL", key))
    except ResponseError as error:
        raise wrong_type(error, what) from error
    return dict(zip(flat[::2], flat[1::2], strict=True))


def wrong_type(error: ResponseError, what: str) -> Exception:
    """UnreadableRecord if the error says that a key has another type, else the error itself."""
    if "WRONGTYPE" not in str(error):
        return error
    return UnreadableRecord(f"{what} is kept in another form than this version of the service reads.", retry_after_s=5)


async def redis_time(redis: Client) -> float:
    """Return seconds since the epoch by Redis' clock: every time that is stored is compared with others of that clock,
    and the clocks of gateways and workers may be wrong."""
    seconds, microseconds = await redis.call("TIME")
    return float(seconds) + float(microseconds) / 1e6
