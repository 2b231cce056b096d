"""Refuses request bodies that no honest request needs, before they fill the memory, and those that never end."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.batches.files import MAX_FILE_BYTES
from server.images.uploads import MAX_IMAGE_BYTES

MIN_BYTES_PER_S = 128 << 10  # a megabit a second: a poor mobile connection
MAX_BODY_BYTES = 1 << 20  # the longest valid request has a few kilobytes
#: Of those that carry files; the form around a file needs a little as well.
LARGER = {
    "/v1/files": MAX_FILE_BYTES + 65536,
    "/v1/images/edits": 2 * MAX_IMAGE_BYTES + 65536,
    "/v1/images/variations": MAX_IMAGE_BYTES + 65536,
}


class BodyLimit:
    """Counts what arrives, so that a body sent in chunks without a Content-Length is caught as well.

    A body has `patience_s` to arrive whole, and longer only while it comes at MIN_BYTES_PER_S: at one byte a second it
    would hold a connection and a buffer for days.
    """

    def __init__(self, app: ASGIApp, patience_s: float) -> None:
        self.app, self._patience_s = app, patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        limit = LARGER.get(scope["path"], MAX_BODY_BYTES)
        too_large = declared.isdigit() and int(declared) > limit
        arrived, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._patience_s

        async def limited() -> Message:
            nonlocal arrived, whole
            if too_large:  # the routes that read a body learn it before the first byte, the others need not care
                raise HTTPException(413)
            try:
                async with asyncio.timeout_at(None if whole else deadline + arrived / MIN_BYTES_PER_S):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408) from error
            arrived += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if arrived > limit:
                raise HTTPException(413)  # of all exceptions FastAPI lets only this one out of reading a body
            return message

        await self.app(scope, limited, send)
