"""Before a request is read: whose key it has, whether he may go on, and which pages may ask."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from typing import Annotated, cast

from fastapi import Depends, FastAPI, Request
from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import KeyDisabled, RateLimited, RequestError
from server.gateway.api_keys import NOBODY, Caller, KeyRing
from server.gateway.lifespan import Services
from server.gateway.middleware.request_context import refuse
from server.queue.job_queue import Queue

_SHOWN_TO_OTHERS = (
    "x-request-id", "x-job-id", "seed", "finish-reason", "location", "retry-after", "server-timing", "x-batch-size",
    "retry-after-ms", "x-queue-time-ms", "x-inference-time-ms", "x-encode-time-ms", "x-overhead-time-ms", "x-kernels",
    "x-warnings",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
)  # fmt: skip


async def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


CallerDep = Annotated[Caller, Depends(_caller)]


class Guard:
    """401, 403 and 429 before a byte of the body is read."""

    def __init__(self, app: ASGIApp, ring: KeyRing, metrics_access: str) -> None:
        self.app, self._ring = app, ring
        self._locked = ("/v1/", "/metrics") if metrics_access == "key" else ("/v1/",)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller, limits = NOBODY, {}
        try:
            if scope["path"].startswith(self._locked):
                caller = self._ring.caller(Headers(scope=scope).get("authorization", ""))
                if caller.disabled:
                    raise KeyDisabled(f"The API key of {caller.name!r} is switched off. Ask the operator.")
                services: Services = scope["app"].state.services
                if caller.rate_limit and _counts(scope):
                    limits = await _spend(services.queue, caller)
        except (RequestError, RedisError) as error:
            await refuse(scope, error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, _adding(send, limits) if limits else send)


def _counts(scope: Scope) -> bool:
    """What draws or uploads; looking, following and canceling are free."""
    return scope["method"] in ("POST", "PUT") and not scope["path"].endswith("/cancel")


async def _spend(queue: Queue, caller: Caller) -> dict[str, str]:
    """One of the caller's requests of this minute; the headers that OpenAI's clients know.

    Raises:
        RateLimited: there is none left.
    """
    allowed, left, whole_s, next_s = await queue.run("rate", [caller.name, caller.rate_limit])
    headers = {
        "x-ratelimit-limit-requests": str(caller.rate_limit),
        "x-ratelimit-remaining-requests": str(left),
        "x-ratelimit-reset-requests": f"{float(whole_s):.3g}s",
    }
    if allowed:
        return headers
    raise RateLimited(
        f"{caller.name!r} may make {caller.rate_limit} requests a minute (FLUID_RATE_LIMIT). Try later.",
        retry_after_s=max(1, math.ceil(float(next_s))),
        extra=headers | {"retry-after-ms": str(max(1, math.ceil(float(next_s) * 1000)))},
    )


def _adding(send: Send, headers: dict[str, str]) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return add


def page_policy(page: str) -> str:
    """The Content-Security-Policy of a page that needs nothing from elsewhere: its own scripts, known by their hash."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def allow_origins(app: FastAPI, origins: str) -> None:
    """CORS for pages of these origins, by commas. Without credentials: keys travel in a header, never as cookies."""
    wanted = [origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()]
    if wanted:
        app.add_middleware(
            CORSMiddleware, allow_origins=wanted, allow_methods=["*"], allow_headers=["*"],
            expose_headers=_SHOWN_TO_OTHERS, max_age=3600,
        )  # fmt: skip
