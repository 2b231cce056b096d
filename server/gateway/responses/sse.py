"""Server-sent events: their wire format, and the response that streams them."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

PING = b": ping\n\n"
#: Keep reverse proxies from buffering the stream.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def message(data: dict[str, Any], *, event: str = "", id: str = "") -> bytes:
    """Encode one event. ASCII JSON keeps `data` on one line: some readers also break lines at U+2028 or U+0085."""
    lines = [f"id: {id}"] if id else []
    lines += [f"event: {event}"] if event else []
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


def response(events: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS | (headers or {}))
