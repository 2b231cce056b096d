"""Webhooks: notify a caller's server that a job has ended, as Standard Webhooks (standardwebhooks.com) specifies.

A delivery is an entry in Redis with the time of its next attempt, so it survives restarts of every process, and any
gateway can make it. It may arrive twice, with the same webhook-id. Private addresses are rejected
(webhook_addresses.py), and redirects are not followed.

Every owner has slots of their own, and within them every endpoint: dead endpoints delay no other owner's webhooks. An
endpoint that keeps failing is left alone for a while, longer each time.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import httpx
from prometheus_client import Counter

from server.errors import ConfigError, InvalidRequest, JobExpired, UnknownJob
from server.gateway.webhook_addresses import PrivateAddress, check_url, resolve_address
from server.queue.due_work import poll_due
from server.queue.job_queue import JobQueue
from server.queue.redis_client import read_hash, redis_time
from server.records import UNREADABLE, skip

log = logging.getLogger(__name__)
SECRET_PREFIX = "whsec_"
#: Seconds before each further attempt: 10 attempts in three days.
BACKOFF_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
ATTEMPT_TIMEOUT_S = 15.0  # from resolving the name to the headers of the response
VISIBILITY_TIMEOUT_S = 4 * ATTEMPT_TIMEOUT_S  # longer than any attempt, so that no other gateway repeats it meanwhile
MAX_CONCURRENT = 128
OWNER_SLOTS = 8  # deliveries of one owner at a time
ENDPOINT_SLOTS = 4  # deliveries of one owner to one endpoint at a time
TOLERATED_FAILURES = 2  # in succession, before an endpoint is left alone
ENDPOINT_KEPT_S = 86400  # a failing one is remembered for so long after its last failure
PAUSE_S, MAX_PAUSE_S = 5.0, 300.0  # the first pause of an endpoint, which doubles, and the longest
GetJob = Callable[[str], Awaitable[dict[str, object]]]


def parse_secret(text: str) -> bytes:
    """Decode FLUID_WEBHOOK_SECRET; b"" if it is empty.

    Raises:
        ConfigError: it is not in the standard's format.
    """
    if not text:
        return b""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigError(
            "FLUID_WEBHOOK_SECRET must be whsec_ followed by base64 of 24 to 64 bytes; make one with: "
            'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        )
    return key


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the webhook-signature header of the standard, version 1 (HMAC-SHA256)."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook under delivery. Every attempt sends the same `message`, with the job as it was when first due."""

    job_id: str
    url: str
    attempts: int  #: failed so far
    message: str


class Due(NamedTuple):
    """A claimed webhook; `endpoint` is host and port. With `prepare` its message is made now, for an attempt later."""

    job_id: str
    owner: str
    endpoint: str
    prepare: int = 0


class Webhooks:
    """Deliver webhooks beside a gateway's requests."""

    def __init__(self, queue: JobQueue, secret: bytes, *, private: bool, sent: Counter, bugs: Counter) -> None:
        self.secret = secret
        self.private = private
        self.sent, self._bugs = sent, bugs
        self._queue = queue

    def check(self, url: str) -> None:
        """Check a webhook before its job is accepted.

        Raises:
            InvalidRequest: nothing could ever be delivered there.
        """
        if not self.secret:
            raise InvalidRequest(
                "'webhook' is not available: the operator has not set FLUID_WEBHOOK_SECRET.", param="webhook"
            )
        check_url(url, private=self.private)

    async def run_forever(self, get_job: GetJob) -> None:
        """Deliver due webhooks until canceled; `get_job` returns the job object of an id."""
        async with httpx.AsyncClient(timeout=ATTEMPT_TIMEOUT_S, follow_redirects=False, trust_env=False) as http:

            async def deliver(due: Due) -> None:
                await self._deliver(http, due, get_job)

            await poll_due("webhooks", self._claim, deliver, at_once=MAX_CONCURRENT, bugs=self._bugs)

    async def _claim(self, count: int, running: Collection[Due]) -> list[Due]:
        args = {
            "count": count,
            "visibility_timeout_s": VISIBILITY_TIMEOUT_S,
            "owner_slots": OWNER_SLOTS,
            "endpoint_slots": ENDPOINT_SLOTS,
            "running": [[due.owner, due.endpoint] for due in running if not due.prepare],
        }
        return [Due(*each) for each in await self._queue.run("claim_webhooks", args)]

    async def _deliver(self, http: httpx.AsyncClient, due: Due, get_job: GetJob) -> None:
        delivery = await self._load(due.job_id, get_job)
        if delivery is None:
            await self._finish(due, "lost")
            return
        if due.prepare:
            return
        outcome = await self._send(http, delivery)
        if outcome == "delivered":
            await self._finish(due, outcome)
        elif outcome == "gone" or delivery.attempts >= len(BACKOFF_S):
            log.error("webhook of %s: gave up after %d attempts", due.job_id, delivery.attempts + 1)
            await self._finish(due, "given_up")
        else:
            self.sent.labels("failed").inc()
            await self._attempt_later(due, BACKOFF_S[delivery.attempts])

    async def _attempt_later(self, due: Due, backoff_s: float) -> None:
        """Count a failure of the webhook and of its endpoint, and schedule the next attempt."""
        redis, keys = self._queue.redis, self._queue.keys
        endpoint, now = keys.webhook_endpoint_hash(due.owner, due.endpoint), await redis_time(redis)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(endpoint, "failures", 1)
            pipe.expire(endpoint, ENDPOINT_KEPT_S)
            pipe.hincrby(keys.webhook_hash(due.job_id), "attempts", 1)
            pipe.zadd(keys.webhooks_zset(due.owner), {due.job_id: now + backoff_s})
            pipe.zadd(keys.webhook_owners_zset, {due.owner: now + backoff_s}, lt=True)
            failures = (await pipe.execute())[0]
        if failures > TOLERATED_FAILURES:
            pause_s = min(PAUSE_S * 2 ** min(failures - TOLERATED_FAILURES - 1, 10), MAX_PAUSE_S)
            await self._queue.run(
                "pause_endpoint", {"owner": due.owner, "endpoint": due.endpoint, "until": now + pause_s}
            )

    async def _load(self, job_id: str, get_job: GetJob) -> Delivery | None:
        key = self._queue.keys.webhook_hash(job_id)
        stored = await read_hash(self._queue.redis, key, f"The webhook of {job_id}")
        if not stored:
            return None
        message = stored.get("message")
        if message is None:
            try:
                job = await get_job(job_id)
            except (UnknownJob, JobExpired):
                return None
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            message = json.dumps({"type": f"job.{job['status']}", "timestamp": now, "data": job})
            await self._queue.redis.hset(key, "message", message)
        try:
            return Delivery(job_id, stored["url"], int(stored["attempts"]), message)
        except UNREADABLE as error:
            skip("a webhook", error)
            return None

    async def _send(self, http: httpx.AsyncClient, delivery: Delivery) -> str:
        """Make one attempt and return its outcome: delivered, failed (attempt again later) or gone (never again)."""
        body, now, message_id = delivery.message.encode(), int(time.time()), f"msg_{delivery.job_id}"
        try:
            # httpx's own timeout is per read. No Redis call in here: it may miss a cancellation (background.py).
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                address = await resolve_address(delivery.url, private=self.private)
                headers = {
                    "Host": address.host_header,
                    "Content-Type": "application/json",
                    "webhook-id": message_id,
                    "webhook-timestamp": str(now),
                    "webhook-signature": sign(self.secret, message_id, now, body),
                }
                extensions = {"sni_hostname": address.sni_hostname}
                request = http.build_request("POST", address.url, content=body, headers=headers, extensions=extensions)
                response = await http.send(request, stream=True)  # the body is never read, however long it is
                await response.aclose()
        except PrivateAddress as error:
            log.warning("webhook of %s: %s", delivery.job_id, error)
            return "gone"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: UnicodeError of a host
            log.warning("webhook of %s, attempt %d: %r", delivery.job_id, delivery.attempts + 1, error)
            return "failed"
        if response.is_success:
            return "delivered"
        log.warning(
            "webhook of %s, attempt %d: status %d", delivery.job_id, delivery.attempts + 1, response.status_code
        )
        return "gone" if response.status_code == 410 else "failed"

    async def _finish(self, due: Due, outcome: str) -> None:
        """Count the outcome and remove the delivery."""
        self.sent.labels(outcome).inc()
        keys = self._queue.keys
        async with self._queue.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(keys.webhooks_zset(due.owner), due.job_id)
            pipe.delete(keys.webhook_hash(due.job_id))
            if outcome == "delivered":
                pipe.delete(keys.webhook_endpoint_hash(due.owner, due.endpoint))
            await pipe.execute()
