"""RequestContext: give every request an id, and count and time it."""

import random
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.dependencies import Services
from server.gateway.middleware.security_headers import LINK_HEADERS, SECURITY_HEADERS
from server.telemetry.tracing import Span, current

_SECURITY, _LINKED = (
    [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    for headers in (SECURITY_HEADERS, LINK_HEADERS)
)
_UNTRACED = ("/health/", "/metrics")
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Put the request id and security headers on every response, and count it.

    Pure ASGI: Starlette's BaseHTTPMiddleware would hide a client's disconnect from the routes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500
        services: Services | None = getattr(scope["app"].state, "services", None)
        span = _begin_span(services, scope) if services and services.tracing.on else None
        current.set(span)  # in the context of this request's task alone

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                security = _LINKED if scope["state"].get("signed_link") else _SECURITY
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *security]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            route, method = _route(scope)
            if services is not None:
                _count(services, route, method, status, time.monotonic() - started, span)
            if span is not None:
                span.rename(f"{method} {route}")
                span.set({"http.route": route, "http.response.status_code": status, "fluid.request_id": request_id})
                span.end(error=str(status) if status >= 500 else "")


def _request_id(scope: Scope) -> str:
    """Return the caller's x-request-id if it is well formed, else a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"req_{random.getrandbits(64):016x}"  # names the request in logs, and protects nothing


def _begin_span(services: Services, scope: Scope) -> Span | None:
    """Start the request's span, unless it is a probe or a scrape."""
    if scope["path"].startswith(_UNTRACED):
        return None
    sent = [value for name, value in scope["headers"] if name == b"traceparent"]
    span = services.tracing.request(sent[0].decode("latin-1") if len(sent) == 1 else "", scope["method"])
    if span is not None:
        span.set({"http.request.method": scope["method"]})
    return span


def _route(scope: Scope) -> tuple[str, str]:
    """The route's template, not its path, and the method: one label per job id would grow without bound."""
    route = getattr(scope.get("route"), "path_format", "unmatched")
    return route, scope["method"] if route != "unmatched" else "any"


def _count(services: Services, route: str, method: str, status: int, seconds: float, span: Span | None) -> None:
    exemplar = {"trace_id": span.context.trace_id} if span is not None else None
    services.metrics.count_request(route, method, status, seconds, exemplar)
