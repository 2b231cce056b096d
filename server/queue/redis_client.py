"""The Redis client, as this service wants it."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError

#: redis-py annotates every answer as the union of all protocols and decodings, differently in each release.
#: We fix both here, and the queue converts what it reads into its own types.
Client = Any
#: Few and quick: callers should hear 503 within a second, and every script of ours may be repeated.
RETRIES = 3
#: A host that vanished never answers and never closes. Longer than any wait of ours (BLPOP blocks for 0.25 s).
PATIENT_TIMEOUT_S = 5.0
#: Commands under way at once. redis-py's own limit is 100, and more is an error, not a queue: a crowd got 503 from a
#: healthy Redis. Waiting for a connection would add to the wait for an answer, and 503 would come too late.
MAX_CONNECTIONS = 4096
#: For the gateway: a caller shall hear 503 within a second of a Redis that does not answer.
QUICK_TIMEOUT_S = 0.9


def connect(url: str, timeout_s: float) -> Client:
    """One client per process, text answers. Protocol 2 is pinned: version 3 changes the shape of answers."""
    # Only what was not sent is repeated at once; after a silence, trying again would double the wait.
    retry = Retry(ExponentialBackoff(cap=0.2, base=0.02), RETRIES, supported_errors=(ConnectionError,))
    return Redis.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        decode_responses=True,
        protocol=2,
        retry=retry,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
