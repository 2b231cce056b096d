"""Authenticate: find the caller of a request by its API key, and apply the caller's rate limit."""

from __future__ import annotations

import math
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import KeyDisabled, RateLimited, RequestError
from server.gateway.api_keys import ANONYMOUS, Caller, KeyRing
from server.gateway.dependencies import Services
from server.gateway.middleware.errors import error_response
from server.queue.job_queue import JobQueue


def caller_of(request: Request) -> Caller:
    """Return the caller whom Authenticate has found."""
    return cast(Caller, request.state.caller)


async def _caller(request: Request) -> Caller:
    """Return the caller; async for the same reason as `dependencies._services`."""
    return caller_of(request)


CallerDep = Annotated[Caller, Depends(_caller)]


class Authenticate:
    """Respond with 401, 403 or 429 before a byte of the body is read."""

    def __init__(self, app: ASGIApp, ring: KeyRing, metrics_access: str) -> None:
        self.app, self._ring = app, ring
        self._protected = ("/v1/", "/metrics") if metrics_access == "key" else ("/v1/",)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller, rate_headers = ANONYMOUS, {}
        try:
            if scope["path"].startswith(self._protected):
                caller = self._ring.caller(Headers(scope=scope).get("authorization", ""))
                if caller.disabled:
                    raise KeyDisabled(f"The API key of {caller.name!r} is disabled. Ask the operator.")
                services: Services = scope["app"].state.services
                if caller.rate_limit and _is_rate_limited(scope):
                    rate_headers = await _take_from_rate_limit(services.queue, caller)
        except (RequestError, RedisError) as error:
            await error_response(scope, error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, _with_headers(send, rate_headers) if rate_headers else send)


def _is_rate_limited(scope: Scope) -> bool:
    """Return whether the request generates or uploads; reading, following and canceling are free."""
    return scope["method"] in ("POST", "PUT") and not scope["path"].endswith("/cancel")


async def _take_from_rate_limit(queue: JobQueue, caller: Caller) -> dict[str, str]:
    """Count a request against the caller's rate limit, and return the headers that OpenAI's clients know.

    Raises:
        RateLimited: the caller has no request left in this minute.
    """
    allowed, left, whole_s, next_s = await queue.run(
        "rate_limit", {"caller": caller.name, "per_minute": caller.rate_limit}
    )
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


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
