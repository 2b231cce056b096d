"""Authenticate: find the caller of a request by its API key, and apply the caller's rate limits.

A signed link to an image needs no key.
"""

from __future__ import annotations

import math
from typing import Annotated, cast

from fastapi import Depends, Request
from redis.exceptions import RedisError
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import KeyDisabled, RateLimited, RequestError
from server.gateway.api_keys import ANONYMOUS, Caller, KeyRing
from server.gateway.dependencies import Services
from server.gateway.middleware.errors import error_response
from server.gateway.middleware.read_limit import ReadLimit
from server.gateway.signed_links import is_image
from server.queue.job_queue import JobQueue


def caller_of(request: Request) -> Caller:
    """Return the caller whom Authenticate has found."""
    return cast(Caller, request.state.caller)


async def _caller(request: Request) -> Caller:
    """Return the caller; async for the same reason as `dependencies._services`."""
    return caller_of(request)


async def _reader(request: Request) -> str | None:
    return None if getattr(request.state, "signed_link", False) else caller_of(request).name


CallerDep = Annotated[Caller, Depends(_caller)]
#: The owner whose jobs may be read, or None: a signed link opens its image, whoever owns it.
ReaderDep = Annotated[str | None, Depends(_reader)]


class Authenticate:
    """Respond with 401, 403 or 429 before a byte of the body is read."""

    def __init__(self, app: ASGIApp, ring: KeyRing, metrics_access: str, reads: ReadLimit) -> None:
        self.app, self._ring, self._reads = app, ring, reads
        self._protected = ("/v1/", "/metrics") if metrics_access == "key" else ("/v1/",)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        caller, rate_headers = ANONYMOUS, {}
        state = scope.setdefault("state", {})
        try:
            if self._ring.required and _is_signed_link(scope):
                self._reads.take(scope["path"], f"The link to {scope['path']!r}")
                services: Services = scope["app"].state.services
                await services.links.check(scope["path"], QueryParams(scope["query_string"]))
                state["signed_link"] = True
            elif scope["path"].startswith(self._protected):
                caller = self._ring.caller(Headers(scope=scope).get("authorization", ""))
                if caller.disabled:
                    raise KeyDisabled(f"The API key of {caller.name!r} is disabled. Ask the operator.")
                if caller.rate_limit and _is_rate_limited(scope):
                    rate_headers = await _take_from_rate_limit(scope["app"].state.services.queue, caller)
                if caller.name and scope["method"] in ("GET", "HEAD"):
                    self._reads.take(caller.name, repr(caller.name))
        except (RequestError, RedisError) as error:
            await error_response(scope, error)(scope, receive, send)
            return
        state["caller"] = caller
        await self.app(scope, receive, _with_headers(send, rate_headers) if rate_headers else send)


def _is_signed_link(scope: Scope) -> bool:
    """Return whether the request is for an image by a link, and not with a key: a key that is sent must be valid."""
    by_link = scope["method"] in ("GET", "HEAD") and b"signature=" in scope["query_string"] and is_image(scope["path"])
    return by_link and "authorization" not in Headers(scope=scope)


def _is_rate_limited(scope: Scope) -> bool:
    """Return whether the request generates or uploads; canceling is free, and reading has a limit of its own."""
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
