"""RequestContext: give every request an id, and count and time it."""

import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.dependencies import Services
from server.gateway.middleware.security_headers import SECURITY_HEADERS

_SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
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

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *_SECURITY]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            _record(scope, status, time.monotonic() - started)


def _request_id(scope: Scope) -> str:
    """Return the caller's x-request-id if it is well formed, else a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _VALID_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"req_{secrets.token_hex(8)}"


def _record(scope: Scope, status: int, seconds: float) -> None:
    services: Services | None = getattr(scope["app"].state, "services", None)
    if services is None:
        return
    # The route's template, not its path: one label per job id would grow without bound.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if route != "unmatched" else "any"
    services.metrics.count_request(route, method, status, seconds)
