"""Links to images that open without an API key until they expire: an HMAC over the image and the time of its expiry.

The secret lies in Redis, where every gateway finds it, and is never cached: after a failover to a replica that lacks
it, gateways would disagree.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import RequestError
from server.queue.job_queue import JobQueue

_IMAGE_PATH = re.compile(r"/v1/jobs/([^/]+)/images/([0-9]{1,9})")
_EXPIRES = re.compile(r"[0-9]{1,12}")


class LinkRefused(RequestError):
    """The link to an image has expired, or its signature is wrong; the job itself gives a new one."""

    status, type, code = 403, "invalid_request_error", "link_refused"


@dataclass(frozen=True, slots=True)
class SignedLinks:
    """Makes and checks links; `ttl_s` is how long one is valid. Without `required` keys, links need no signature."""

    queue: JobQueue
    ttl_s: int
    required: bool

    async def sign(self, path: str) -> str:
        """Return the path of an image with its signature."""
        if not self.required:
            return path
        secret, now = await self._secret_and_time()
        expires = str(math.ceil(now) + self.ttl_s)
        return f"{path}?expires={expires}&signature={_signature(secret, path, expires)}"

    async def check(self, path: str, query: Mapping[str, str]) -> None:
        """Raises LinkRefused unless the query holds the path's signature and its time has not come."""
        expires, given = query.get("expires", ""), query.get("signature", "")
        secret, now = await self._secret_and_time()
        valid = _EXPIRES.fullmatch(expires) and given.isascii()
        if not valid or not hmac.compare_digest(given, _signature(secret, path, expires)):
            raise LinkRefused("The signature of this link is wrong. Copy the whole link.", param="signature")
        if int(expires) <= now:
            raise LinkRefused(
                "This link has expired. Ask for the image with an API key at the same path, or repeat the request with "
                "its Idempotency-Key for a new link.",
                param="expires",
            )

    async def _secret_and_time(self) -> tuple[bytes, float]:
        redis, key = self.queue.redis, self.queue.keys.link_secret
        async with redis.pipeline(transaction=False) as pipe:
            pipe.get(key)
            pipe.time()
            secret, (seconds, micros) = await pipe.execute()
        if secret is None:
            await redis.set(key, secrets.token_hex(32), nx=True)
            secret = await redis.get(key)
        return secret.encode(), seconds + micros / 1e6


def is_image(path: str) -> bool:
    """True for the path of a job's image, the only kind that links are for."""
    return _IMAGE_PATH.fullmatch(path) is not None


def _signature(secret: bytes, path: str, expires: str) -> str:
    return hmac.new(secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()
