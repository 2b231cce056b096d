"""Telling a caller's server that a job has ended: Standard Webhooks (standardwebhooks.com), from any gateway.

A delivery is an entry in Redis with the time of its next try, so it survives every process. It may arrive twice, with
the same webhook-id. Addresses inside the operator's network are refused, redirects are not followed: otherwise anybody
who may queue a job could make the gateway talk to its neighbours.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from prometheus_client import Counter

from server.errors import ConfigError, InvalidRequest, JobExpired, UnknownJob
from server.queue.due_work import poll_due
from server.queue.job_queue import JobQueue

log = logging.getLogger(__name__)
PREFIX = "whsec_"
#: Seconds before each further try: 10 tries in three days.
BACKOFF_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
ANSWER_S = 15.0  # of a whole try, from the name's look-up to the answer's headers
VISIBILITY_TIMEOUT_S = 4 * ANSWER_S  # longer than any delivery, so that no other gateway repeats it meanwhile
AT_ONCE = 16
#: Addresses that count as global and lead to others: tunnels and translations, whose far end may be our neighbour.
_DETOURS = tuple(
    ipaddress.ip_network(each)
    for each in (
        "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10", "::/96", "::ffff:0:0:0/96",
    )
)  # fmt: skip
Describe = Callable[[str], Awaitable[dict[str, object]]]


class Forbidden(Exception):
    """The address is one that we do not talk to."""


def parse_secret(text: str) -> bytes:
    """The key in FLUID_WEBHOOK_SECRET; b"" if there is none.

    Raises:
        ConfigError: it is not in the standard's form.
    """
    if not text:
        return b""
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigError(
            "FLUID_WEBHOOK_SECRET must be whsec_ followed by base64 of 24 to 64 bytes; make one with: "
            'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        )
    return key


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The webhook-signature header of the standard, version 1."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def is_public(address: str) -> bool:
    """Whether this is an address of the internet, and of nothing inside by way of it."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in detour for detour in _DETOURS)


def check_url(url: str, *, private: bool) -> None:
    """What can be told without asking anybody.

    Raises:
        InvalidRequest: nothing could ever be delivered there.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url).raw_host.decode().encode("idna")  # as the client and the look-up of the name will read it
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidRequest(f"'webhook' is not an address: {error}.", param="webhook") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise InvalidRequest(
            "'webhook' must be an http or https address without a user name, for example https://example.com/hook.",
            param="webhook",
        )
    try:
        public = is_public(host)
    except ValueError:
        return  # a name; what it stands for is looked up when it counts
    if not private and not public:
        raise InvalidRequest("'webhook' must not be a private address (FLUID_WEBHOOK_PRIVATE).", param="webhook")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and whom to ask for there."""

    url: httpx.URL
    host: str
    sni_hostname: str


async def resolve_address(url: str, *, private: bool) -> Address:
    """The very address that was checked: a name could mean another one a moment later.

    Raises:
        Forbidden: it is a private one. OSError: there is no such name.
    """
    target = httpx.URL(url)
    port = target.port or (443 if target.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]).split("%")[0] for info in found]
    if not private and not all(map(is_public, addresses)):
        raise Forbidden(f"{target.host} is {addresses[0]}, a private address (FLUID_WEBHOOK_PRIVATE)")
    return Address(target.copy_with(host=addresses[0]), target.netloc.decode(), target.host)


@dataclass(frozen=True, slots=True)
class Delivery:
    """`told` is the message as it was first sent: every try carries the same."""

    job_id: str
    url: str
    tries: int
    told: str


class Webhooks:
    """Runs beside a gateway."""

    def __init__(self, queue: JobQueue, secret: bytes, *, private: bool, sent: Counter, bugs: Counter) -> None:
        self.secret = secret
        self.private = private
        self.sent, self._bugs = sent, bugs
        self._queue = queue

    def check(self, url: str) -> None:
        """Before the job is accepted.

        Raises:
            InvalidRequest: nothing will ever be delivered there.
        """
        if not self.secret:
            raise InvalidRequest(
                "'webhook' is not offered here: its operator set no FLUID_WEBHOOK_SECRET.", param="webhook"
            )
        check_url(url, private=self.private)

    async def forever(self, describe: Describe) -> None:
        """`describe` gives the job object of an id."""
        async with httpx.AsyncClient(timeout=ANSWER_S, follow_redirects=False, trust_env=False) as http:

            async def deliver(job_id: str) -> None:
                await self._deliver(http, job_id, describe)

            await poll_due(
                self._queue,
                "hooks",
                self._queue.keys.webhooks_zset,
                deliver,
                visibility_timeout_s=VISIBILITY_TIMEOUT_S,
                at_once=AT_ONCE,
                bugs=self._bugs,
            )

    async def _deliver(self, http: httpx.AsyncClient, job_id: str, describe: Describe) -> None:
        delivery = await self._load(job_id, describe)
        if delivery is None:
            await self._forget(job_id, "lost")
            return
        outcome = await self._send(http, delivery)
        if outcome == "delivered":
            await self._forget(job_id, outcome)
        elif outcome == "gone" or delivery.tries >= len(BACKOFF_S):
            log.error("webhook of %s: given up after %d tries", job_id, delivery.tries + 1)
            await self._forget(job_id, "given_up")
        else:
            self.sent.labels("failed").inc()
            await self._queue.redis.hincrby(self._queue.keys.webhook_hash(job_id), "attempts", 1)
            at = time.time() + BACKOFF_S[delivery.tries]
            await self._queue.redis.zadd(self._queue.keys.webhooks_zset, {job_id: at})

    async def _load(self, job_id: str, describe: Describe) -> Delivery | None:
        key = self._queue.keys.webhook_hash(job_id)
        kept = await self._queue.redis.hgetall(key)
        if not kept:
            return None
        told = kept.get("told")
        if told is None:
            try:
                job = await describe(job_id)
            except (UnknownJob, JobExpired):
                return None
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            told = json.dumps({"type": f"job.{job['status']}", "timestamp": stamp, "data": job})
            await self._queue.redis.hset(key, "told", told)
        return Delivery(job_id, kept["url"], int(kept["attempts"]), told)

    async def _send(self, http: httpx.AsyncClient, delivery: Delivery) -> str:
        body, now, name = delivery.told.encode(), int(time.time()), f"msg_{delivery.job_id}"
        try:
            async with asyncio.timeout(ANSWER_S):  # httpx's is for each byte; no Redis in here: background.py
                address = await resolve_address(delivery.url, private=self.private)
                headers = {
                    "Host": address.host,
                    "Content-Type": "application/json",
                    "webhook-id": name,
                    "webhook-timestamp": str(now),
                    "webhook-signature": sign(self.secret, name, now, body),
                }
                known = {"sni_hostname": address.sni_hostname}
                request = http.build_request("POST", address.url, content=body, headers=headers, extensions=known)
                answer = await http.send(request, stream=True)  # nobody reads what it says, however long it is
                await answer.aclose()
        except Forbidden as error:
            log.warning("webhook of %s: %s", delivery.job_id, error)
            return "gone"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # a name may be none: UnicodeError
            log.warning("webhook of %s, try %d: %r", delivery.job_id, delivery.tries + 1, error)
            return "failed"
        if answer.is_success:
            return "delivered"
        log.warning("webhook of %s, try %d: answered %d", delivery.job_id, delivery.tries + 1, answer.status_code)
        return "gone" if answer.status_code == 410 else "failed"

    async def _forget(self, job_id: str, outcome: str) -> None:
        self.sent.labels(outcome).inc()
        async with self._queue.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(self._queue.keys.webhooks_zset, job_id)
            pipe.delete(self._queue.keys.webhook_hash(job_id))
            await pipe.execute()
