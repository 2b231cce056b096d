"""The Redis client with the timeouts and retries of this service, and what is wrong with a Redis, in words."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
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

from server.addresses import without_password
from server.errors import ConfigError, SettingError
from server.queue.connection.pool import WaitingPool

log = logging.getLogger(__name__)
#: redis-py annotates every reply as the union of all protocols and decodings, differently in each release.
#: Both are fixed here, and the queue converts what it reads into its own types.
Client = Any
#: Few and quick: callers should get their 503 within a second, and every script is safe to repeat.
RETRIES = 3
#: A vanished host neither answers nor closes. Longer than any blocking call (BLPOP blocks for 0.25 s).
PATIENT_TIMEOUT_S = 5.0
#: For the gateway: its callers get 503 within a second when Redis does not answer.
QUICK_TIMEOUT_S = 0.9

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
    text, chain = str(error), list(_causes(error))
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


async def find_problems(redis: Client, probe_key: str) -> list[Problem]:
    """Write a key, and read the settings of persistence and memory.

    Raises:
        RedisError: Redis does not answer at all.
    """
    found: list[Problem] = []
    try:
        await redis.set(probe_key, "1", px=1000)
    except ResponseError as error:
        meaning, remedy = explain(error)
        found.append(Problem(f"writes fail: the queue {meaning} ({error})", remedy))
    return [*found, *config_problems(await read_config(redis))]


async def read_config(redis: Client) -> dict[str, str]:
    """Redis' persistence and memory settings; empty where CONFIG is forbidden, as managed services often do."""
    try:
        return dict(await redis.config_get("append*", "maxmemory-policy"))
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


class _Retry(Retry):
    """Retries at once what may succeed at once: a failed connection, but no refused password, nor a timeout, which
    would double the wait."""

    async def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        async def do_once() -> Any:
            try:
                return await do()
            except ConnectionError as error:
                # To redis-py a refused password is a failed connection, or the cause of one.
                refused = next((each for each in _causes(error) if isinstance(each, AuthenticationError)), None)
                if refused is None:
                    raise
                raise _Refused(refused) from error

        try:
            return await super().call_with_retry(do_once, fail, *args, **options)
        except _Refused as refused:
            raise refused.error from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it; redis-py wraps what a new connection is told into a ConnectionError."""
    while error is not None:
        yield error
        error = error.__cause__


class _Refused(Exception):
    """Carries an error past the retries."""

    def __init__(self, error: AuthenticationError) -> None:
        super().__init__()
        self.error = error


def connect(url: str, timeout_s: float) -> Client:
    """Create the client of a process, with replies as text. Protocol 2 is pinned: version 3 changes replies' shape.

    Raises:
        SettingError: the URL has options that redis-py does not know.
    """
    retry = _Retry(ExponentialBackoff(cap=0.2, base=0.02), RETRIES, supported_errors=(ConnectionError,))
    try:
        pool = WaitingPool.from_url(
            url,
            timeout_s=timeout_s,
            decode_responses=True,
            protocol=2,
            retry=retry,
        )
        client = Redis.from_pool(pool)
        pool.connection_class(**pool.connection_kwargs)  # unknown options would be found by the first command only
    except (TypeError, ValueError, AttributeError):  # what they say may quote a part of a password
        raise SettingError(
            "FLUID_REDIS_URL has an option that Redis' client does not know, or a value that it cannot use: correct "
            "what follows the question mark."
        ) from None
    return client


async def wait_until_up(redis: Client, url: str) -> None:
    """Return once Redis answers; log a reason once, not with every attempt.

    Raises:
        ConfigError: Redis refuses the user or password, which no retry can cure.
    """
    address, logged = without_password(url), ""
    while True:
        try:
            await redis.ping()
            return
        except AuthenticationError as error:
            raise ConfigError(f"Redis at {address} refuses the user or password of FLUID_REDIS_URL.") from error
        except RedisError as error:
            if str(error) != logged:
                log.warning("waiting for Redis at %s: %s", address, error)
                logged = str(error)
            await asyncio.sleep(0.5)


async def redis_time(redis: Client) -> float:
    """Return seconds since the epoch by Redis' clock: every time that is stored is compared with others of that clock,
    and the clocks of gateways and workers may be wrong."""
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1e6
