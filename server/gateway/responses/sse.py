"""Server-sent events: how they look on the wire, and the response that carries them."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

PING = b": ping\n\n"
#: A reverse proxy that collects the answer before it passes it on would defeat the purpose.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def message(data: dict[str, Any], *, event: str = "", id: str = "") -> bytes:
    """One event. ASCII JSON, so that `data` is one line to every reader: some break lines at U+2028 or U+0085, too."""
    lines = [f"id: {id}"] if id else []
    lines += [f"event: {event}"] if event else []
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


def response(events: AsyncIterator[bytes], headers: dict[str, str] | None = None) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS | (headers or {}))
