"""BodyLimit: reject request bodies that are too large, alone or together, before they fill memory; and slow ones."""

import asyncio
from collections import Counter

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.batches.files import MAX_FILE_BYTES
from server.images.uploads import MAX_IMAGE_BYTES

MIN_BYTES_PER_S = 128 << 10  # a megabit a second: a poor mobile connection
MAX_BODY_BYTES = 1 << 20  # the longest valid request takes a few kilobytes
#: Of all bodies that a gateway holds at a time, those of one API key and those of all callers.
MAX_KEY_HELD_BYTES, MAX_HELD_BYTES = 128 << 20, 512 << 20
#: Routes that take files. The extra 64 KiB are for the form or the JSON around them.
UPLOAD_LIMITS = {
    "/v1/files": MAX_FILE_BYTES + 65536,
    "/v1/images/edits": 2 * MAX_IMAGE_BYTES + 65536,
    "/v1/images/variations": MAX_IMAGE_BYTES + 65536,
    "/v1/responses": 2 * (MAX_IMAGE_BYTES * 4 // 3) + 65536,  # image and mask in base64
}


class BodyLimit:
    """Count the bytes that arrive, so that a chunked body without a Content-Length is limited too.

    The bodies of one API key, and of all callers, are limited together too: they are held in memory until the request
    is answered, or calls `scope["state"]["body_released"]`.

    A body has `timeout_s` to arrive completely, plus the time that its bytes take at MIN_BYTES_PER_S. At one byte per
    second it would otherwise hold a connection and a buffer for days.
    """

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self.app, self._timeout_s = app, timeout_s
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        limit = UPLOAD_LIMITS.get(scope["path"], MAX_BODY_BYTES)
        too_large = declared.isdigit() and int(declared) > limit
        arrived, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        state = scope.setdefault("state", {})
        owner = state["caller"].name if "caller" in state else ""
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if owner and self._held[owner] + count > MAX_KEY_HELD_BYTES:
                raise HTTPException(429, _too_many(repr(owner), MAX_KEY_HELD_BYTES))
            if self._held.total() + count > MAX_HELD_BYTES:
                raise HTTPException(429, _too_many("all callers", MAX_HELD_BYTES))
            self._held[owner] += count
            held += count

        def release() -> None:
            nonlocal held
            self._held[owner] -= held
            held = 0
            if not self._held[owner]:
                del self._held[owner]

        state["body_released"] = release

        async def receive_limited() -> Message:
            nonlocal arrived, complete
            if too_large:  # before the first byte, and only if the route reads the body
                raise HTTPException(413, _too_large(limit))
            if complete:
                return await receive()  # waits for the client's disconnect
            try:
                async with asyncio.timeout_at(deadline + arrived / MIN_BYTES_PER_S):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408) from error
            arrived += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if arrived > limit:
                raise HTTPException(
                    413, _too_large(limit)
                )  # the only exception that FastAPI passes on while it reads a body
            hold(len(message.get("body", b"")))
            return message

        try:
            await self.app(scope, receive_limited, send)
        finally:
            release()


def _too_large(limit: int) -> str:
    remedy = "no request needs that" if limit == MAX_BODY_BYTES else "split the file, or scale its images down"
    return f"The body is larger than {limit} bytes; {remedy}."


def _too_many(whose: str, limit: int) -> str:
    return f"The bodies of {whose} that arrive at the moment exceed {limit >> 20} MiB. Send fewer at a time."
