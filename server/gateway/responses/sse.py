"""Server-sent events: their wire format, the response that streams them, and how many streams may be open."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from redis.exceptions import RedisError
from starlette.types import Receive, Scope, Send

from server.errors import RateLimited
from server.queue.registry import STREAMS_KEPT_S, Registry

log = logging.getLogger(__name__)
PING = b": ping\n\n"
#: Keep reverse proxies from buffering the stream.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def message(data: dict[str, Any], *, event: str = "", id: str = "") -> bytes:
    """Encode one event. ASCII JSON keeps `data` on one line: some readers also break lines at U+2028 or U+0085."""
    lines = [f"id: {id}"] if id else []
    lines += [f"event: {event}"] if event else []
    lines.append(f"data: {json.dumps(data, separators=(',', ':'))}")
    return ("\n".join(lines) + "\n\n").encode()


class Streams:
    """Counts the open event streams of a gateway, by owner, and limits them: each one costs work at every event."""

    def __init__(self, max_streams: int, max_key_streams: int) -> None:
        self._max_streams, self._max_key_streams = max_streams, max_key_streams
        self._open: Counter[str] = Counter()

    def open(self, owner: str) -> "StreamSlot":
        """Take a slot for a stream of this owner; without API keys only the limit of all streams applies.

        Raises:
            RateLimited: the owner, or this gateway, has as many open streams as allowed.
        """
        used, total = self._open[owner], self._open.total()
        if owner and 0 < self._max_key_streams <= used:
            raise RateLimited(
                f"{owner!r} has {used} open event streams, the limit is {self._max_key_streams} "
                "(FLUID_MAX_KEY_STREAMS). Close some, or poll GET /v1/jobs/{id}.",
                param="stream",
                retry_after_s=1,
            )
        if total >= self._max_streams:
            raise RateLimited(
                f"{total} event streams are open, the limit of a gateway is {self._max_streams} (FLUID_MAX_STREAMS). "
                "Poll GET /v1/jobs/{id}.",
                param="stream",
                retry_after_s=1,
            )
        self._open[owner] += 1
        return StreamSlot(self, owner)

    def close(self, owner: str) -> None:
        self._open[owner] -= 1
        if not self._open[owner]:
            del self._open[owner]

    async def report_forever(self, registry: Registry, process: str) -> None:
        """Tell Redis how many streams are open here, for `fluid doctor`."""
        told = False
        while True:
            if self._open or told:
                told = bool(self._open)
                try:
                    await registry.report_streams(process, self._open)
                except RedisError as error:
                    log.warning("cannot report event streams: %s", error)
            await asyncio.sleep(STREAMS_KEPT_S / 4)


class StreamSlot:
    """The right to one open stream. `close` gives it back, once."""

    def __init__(self, streams: Streams, owner: str) -> None:
        self._streams: Streams | None = streams
        self._owner = owner

    def close(self) -> None:
        if self._streams is not None:
            self._streams.close(self._owner)
            self._streams = None


class _EventResponse(StreamingResponse):
    """Gives its slot back at its end, also when the client has gone before the first event."""

    slot: StreamSlot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.slot.close()


def response(
    events: AsyncIterator[bytes], slot: StreamSlot, headers: dict[str, str] | None = None
) -> StreamingResponse:
    """Stream events; `slot` is given back at the end."""
    streaming = _EventResponse(events, media_type="text/event-stream", headers=HEADERS | (headers or {}))
    streaming.slot = slot
    return streaming
