"""Around every request: its id, its metrics and its error body."""

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.dependencies import Services

log = logging.getLogger(__name__)
#: What any answer says to browsers, whoever asked for it: not to guess at it, not to frame it, not to tell of us.
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAFE = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
_OWN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """Pure ASGI: a wrapping middleware would hide the client's disconnect from the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *_SAFE]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            _count(scope, status, time.monotonic() - began)


def _request_id(scope: Scope) -> str:
    """The caller's own id if it is a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _OWN_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return f"req_{secrets.token_hex(8)}"


def _count(scope: Scope, status: int, seconds: float) -> None:
    services: Services | None = getattr(scope["app"].state, "services", None)
    if services is None:
        return
    # The route's template, never the path: a label per job id would grow without bound.
    route = getattr(scope.get("route"), "path", "unmatched")
    method = scope["method"] if route != "unmatched" else "any"
    services.metrics.requests.labels(route, method, str(status)).inc()
    services.metrics.duration.labels(route, method).observe(seconds)
