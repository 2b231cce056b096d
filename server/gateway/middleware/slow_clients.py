"""How long a connection may take to say what it wants: uvicorn alone would wait for ever, and store any header.

The body of a request has its own limits (body_limit.py); this is about all that comes before and after it, and about
answers that nobody fetches.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS_S = 10.0  # from a connection, or a request's first byte, to the end of its headers
LEFTOVER_S = 10.0  # to finish a body that nobody reads any more: who is hung up on while he sends sees no answer
STALLED_S = 60.0  # without a byte of an answer fetched; looked at so often, so it may be twice as long
MAX_HEADER_BYTES = 32768  # of a request; proxies commonly allow 8 to 16 KiB


class SlowClientTimeouts(HttpToolsProtocol):
    """A connection with a deadline whenever it is the client's turn, idle keep-alive excepted: uvicorn has that."""

    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_headers = _body_owed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(HEADERS_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        self._flows()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(sys.maxsize)  # how much there is shows only when the whole piece is written

    def resume_writing(self) -> None:
        if not self.transport.is_closing():  # else it lives until the rest is fetched, which may be never
            self._flows()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_the_rest()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes, self._in_headers = 0, True
        self._expect(HEADERS_S)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def data_received(self, data: bytes) -> None:
        before = self._header_bytes
        super().data_received(data)
        if self._in_headers and self._header_bytes == before:  # in the middle of one long header
            self._count(len(data))

    def on_headers_complete(self) -> None:
        self._relax()
        self._in_headers, self._body_owed = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_owed = False
        self._relax()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_the_rest()
        if self._body_owed:
            self._expect(LEFTOVER_S)

    def _count(self, arrived: int) -> None:
        self._header_bytes += arrived
        if self._header_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def _expect(self, seconds: float) -> None:
        self._relax()
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _watch(self, left: int) -> None:
        self._stalled = self.loop.call_later(STALLED_S, self._look, left)

    def _watch_the_rest(self) -> None:
        if self.transport.is_closing() and self._stalled is None and self.transport.get_write_buffer_size():
            self._watch(sys.maxsize)

    def _look(self, before: int) -> None:
        left = self._unfetched()
        if left < before:
            self._watch(left)
        else:
            self.transport.abort()  # closing would wait until all is fetched

    def _unfetched(self) -> int:
        """What lies here, in our buffer and the system's: its own is megabytes, and ours waits while that empties."""
        left = self.transport.get_write_buffer_size()
        if sys.platform == "linux":
            fileno = self.transport.get_extra_info("socket").fileno()
            left += int.from_bytes(fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return left

    def _flows(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
