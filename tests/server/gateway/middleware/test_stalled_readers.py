"""Clients that ask for much and then do not read, or read slowly."""

import socket
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import Response

from server.gateway.middleware import slow_clients
from tests.server.harness import until
from tests.server.inprocess import served

SIZE = 30 << 20


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(slow_clients, "STALLED_S", 0.4)
    app = FastAPI()

    @app.get("/big")
    async def big() -> Response:
        return Response(b"x" * SIZE)

    with served(app) as made:
        yield made


def asked(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    made.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    return made


def is_gone(stalled: socket.socket) -> bool:
    """Asked by writing: reading would be what this client does not do."""
    try:
        stalled.send(b"\r\n")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_who_never_reads_is_hung_up_on(port: int) -> None:
    """Each kept its file in the gateway's memory for ever: ten clients, 300 MB."""
    clients = [asked(port) for _ in range(3)]
    try:
        for stalled in clients:
            until(lambda stalled=stalled: is_gone(stalled), seconds=20, what="the end of a stalled connection")  # type: ignore[misc]
    finally:
        for stalled in clients:
            stalled.close()


def test_who_reads_slowly_is_not(port: int) -> None:
    """The whole takes longer than the limits, here and of idle connections, and something is fetched all the while."""
    began = time.monotonic()
    with asked(port) as slow:
        told = 0
        while told < SIZE:
            part = slow.recv(1 << 20)
            assert part, f"hung up on after {told} bytes"
            told += len(part)
            time.sleep(0.02)  # the slowness itself, not a wait
    assert time.monotonic() - began > 2 * slow_clients.STALLED_S
