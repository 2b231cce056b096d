"""Clients that request a large response and then read slowly, or not at all."""

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
    monkeypatch.setattr(slow_clients, "WRITE_TIMEOUT_S", 2.5)  # longer than a stall of this process
    app = FastAPI()

    @app.get("/big")
    async def big() -> Response:
        return Response(b"x" * SIZE)

    with served(app) as port:
        yield port


def request_big(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Probe by writing: this client must not read."""
    try:
        connection.send(b"\r\n")
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_a_client_that_never_reads_is_disconnected(port: int) -> None:
    """Each such client used to keep its response in the gateway's memory: ten clients, 300 MB."""
    clients = [request_big(port) for _ in range(3)]
    try:
        for client in clients:
            until(lambda client=client: is_closed(client), what="the end of a stalled connection")  # type: ignore[misc]
    finally:
        for client in clients:
            client.close()


def test_a_client_that_reads_slowly_is_served(port: int) -> None:
    """The whole response takes longer than the write timeout, but every interval makes progress."""
    began = time.monotonic()
    with request_big(port) as client:
        received = 0
        while received < SIZE:
            part = client.recv(1 << 20)
            assert part, f"disconnected after {received} bytes"
            received += len(part)
            time.sleep(0.04)  # the slowness under test, not a wait
    assert time.monotonic() - began > 2 * slow_clients.WRITE_TIMEOUT_S
