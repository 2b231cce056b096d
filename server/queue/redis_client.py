"""The Redis client with the timeouts and retries of this service."""

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError

#: redis-py annotates every reply as the union of all protocols and decodings, differently in each release.
#: Both are fixed here, and the queue converts what it reads into its own types.
Client = Any
#: Few and quick: callers should get their 503 within a second, and every script is safe to repeat.
RETRIES = 3
#: A vanished host neither answers nor closes. Longer than any blocking call (BLPOP blocks for 0.25 s).
PATIENT_TIMEOUT_S = 5.0
#: Connections, one per command in flight. redis-py allows 100 by default, and more fail instead of waiting: callers
#: got 503 from a healthy Redis. Waiting for a connection would add to the wait for a reply: 503 would come too late.
MAX_CONNECTIONS = 4096
#: For the gateway: its callers get 503 within a second when Redis does not answer.
QUICK_TIMEOUT_S = 0.9


def connect(url: str, timeout_s: float) -> Client:
    """Create the client of a process, with replies as text. Protocol 2 is pinned: version 3 changes replies' shape."""
    # Only connection errors are retried at once; a retry after a timeout would double the wait.
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
