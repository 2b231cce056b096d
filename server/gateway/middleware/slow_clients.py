"""Slow-client timeouts: uvicorn itself waits forever for headers of any size, and keeps unread responses.

A request's body has its own limits (body_limit.py). This file covers what comes before and after it, and responses
that the client does not read.
"""

from __future__ import annotations

import asyncio
import re
import sys

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 10.0  # from the connection, or the first byte of a request, to the end of its headers
#: To send the rest of a body that no route reads. Closing at once would reset the connection of a client that is still
#: sending, and the response would be lost.
UNREAD_BODY_TIMEOUT_S = 10.0
#: Longest pause in a response; checked once per interval, so up to twice as long. Progress is visible only when the
#: system's send buffer (up to 4 MiB) has drained by a third, so a larger response needs a client of about 25 kB/s.
WRITE_TIMEOUT_S = 60.0
MAX_HEADER_BYTES = 32768  # of one request; proxies commonly allow 8 to 16 KiB


class SlowClientTimeouts(HttpToolsProtocol):
    """Close a connection whose client is too slow. Idle keep-alive is exempt: uvicorn has its own timeout for it."""

    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _in_headers = _body_expected = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm_read_timer(HEADER_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_read_timer()
        self._disarm_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._header_bytes
        super().data_received(data)
        if self._in_headers and self._header_bytes == before:  # in the middle of one long header
            self._count_header_bytes(len(data))
        if self._in_headers and self._read_timer is None:  # most headers arrive at once and need no timer
            self._arm_read_timer(HEADER_TIMEOUT_S)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes, self._in_headers = 0, True
        self._disarm_read_timer()

    def on_url(self, url: bytes) -> None:
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header_bytes(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm_read_timer()
        self._in_headers, self._body_expected = False, True
        if b"://" in self.url and not self.url.startswith(b"/"):  # absolute form, whose host wins (RFC 9112, 3.2.2)
            authority = re.split(rb"[/?#]", self.url.split(b"://", 1)[1], maxsplit=1)[0]
            self.headers[:] = [each for each in self.headers if each[0] != b"host"] + [(b"host", authority)]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_expected = False
        self._disarm_read_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_last_bytes()
        if self._body_expected:
            self._arm_read_timer(UNREAD_BODY_TIMEOUT_S)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_last_bytes()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm_write_timer()

    def resume_writing(self) -> None:
        if not self.transport.is_closing():  # a closing transport lives until the client has read the rest
            self._disarm_write_timer()
        super().resume_writing()

    def _count_header_bytes(self, arrived: int) -> None:
        self._header_bytes += arrived
        if self._header_bytes > MAX_HEADER_BYTES:
            self.transport.close()

    def _arm_read_timer(self, seconds: float) -> None:
        self._disarm_read_timer()
        self._read_timer = self.loop.call_later(seconds, self.transport.close)

    def _disarm_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _watch_last_bytes(self) -> None:
        """Arm the write timer for a closing connection whose last bytes were too few to pause writing."""
        if self.transport.is_closing() and self._write_timer is None and self.transport.get_write_buffer_size():
            self._arm_write_timer()

    def _arm_write_timer(self, unsent: int = sys.maxsize) -> None:
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self._check_write_progress, unsent)

    def _disarm_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_write_progress(self, unsent_before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < unsent_before:
            self._arm_write_timer(unsent)
        else:
            self.transport.abort()  # close() would wait until the client has read everything
