"""Clients that send slowly, too much, or not at all: each is disconnected, and the others do not notice."""

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.gateway.api_keys import hash_key
from server.gateway.middleware import slow_clients
from server.gateway.middleware.body_limit import MAX_BODY_BYTES
from tests.server.harness import Service, status_of, until

HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@contextmanager
def connect(service: Service) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=60) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:  # it closed while we were still sending
        pass
    return received


@pytest.fixture
def quick(new_service) -> Service:  # type: ignore[no-untyped-def]
    service: Service = new_service(workers=0, body_timeout_s=0.5)
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200, what="the gateway")
    return service


def test_a_body_that_never_ends_is_a_408(quick: Service) -> None:
    """It arrives byte by byte, so a timeout between two bytes would never fire."""
    with connect(quick) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        slow.settimeout(0.05)
        received = b""
        for _ in range(400):
            try:
                slow.sendall(b"x")
                received += slow.recv(65536)
                break
            except TimeoutError:
                continue
        slow.settimeout(60)
        received += read_to_end(slow)
    assert (
        received.startswith(b"HTTP/1.1 408 ")
        and b'"request_too_slow"' in received
        and b"FLUID_BODY_TIMEOUT_S" in received
    )


@pytest.mark.parametrize("route", ["/v1/images/edits", "/v1/files"])
def test_a_form_that_never_ends_is_a_408(quick: Service, route: str) -> None:
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n".encode()
    with connect(quick) as slow:
        slow.sendall(head + b'Content-Length: 1000\r\n\r\n--b\r\nContent-Disposition: form-data; name="prompt"\r\n')
        assert read_to_end(slow).startswith(b"HTTP/1.1 408 ")


def test_a_request_rejected_before_its_body_does_not_hold_its_connection(new_service) -> None:  # type: ignore[no-untyped-def]
    """31 MiB without a key: the response precedes the first byte, and the connection closes if no byte follows."""
    service = new_service(workers=0, api_keys=f"alice {hash_key('k')}")
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200)
    with connect(service) as slow:
        slow.sendall(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 32505856\r\n\r\n")
        assert read_to_end(slow).startswith(b"HTTP/1.1 401 ")


def test_headers_have_a_timeout(service: Service) -> None:
    """uvicorn alone waits forever for the end of the headers, or for a first byte."""
    with connect(service) as silent, connect(service) as slow:
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Never: ")
        assert read_to_end(silent) == b"" and read_to_end(slow) == b""
    assert status_of(f"{service.settings.base_url}/health/live") == 200


@pytest.mark.parametrize("many", [True, False], ids=["many headers", "one long header"])
def test_headers_are_limited_in_size(service: Service, many: bool) -> None:
    line = b"X-Padding: " + b"x" * 1000 + b"\r\n"
    with connect(service) as greedy:
        try:
            greedy.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + (b"" if many else b"X-Padding: "))
            for _ in range(20_000):
                greedy.sendall(line if many else b"x" * 1000)
            pytest.fail("20 MB of headers were accepted")
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert status_of(f"{service.settings.base_url}/health/live") == 200


def test_a_keep_alive_connection_is_not_closed(service: Service) -> None:
    """Timeouts are for requests in progress; an answered request leaves no timer behind."""
    connection = http.client.HTTPConnection("127.0.0.1", service.settings.port, timeout=60)
    connection.connect()
    own = connection.sock.getsockname()
    until_after = time.monotonic() + slow_clients.HEADER_TIMEOUT_S + 1
    while time.monotonic() < until_after:
        connection.request("POST", "/v1/jobs", body=b'{"prompt": ""}', headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 400 and answer.read()
        assert connection.sock.getsockname() == own
    connection.close()


def memory_peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


HOSTILE = {
    "a prompt of a megabyte": (b'{"prompt": "' + b"a" * (MAX_BODY_BYTES - 100) + b'"}', 400, "prompt"),
    "bad UTF-8": (b'{"prompt": "\xff\xfe\x80"}', 400, None),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400, "prompt"),
    "nested a hundred thousand deep": (b"[" * 100_000, 400, None),
    "a number of a hundred thousand digits": (b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}", 400, None),
    "not an object": (b'"a cat"', 400, None),
    "nothing": (b"", 400, None),
    "no JSON": (b"prompt=a+cat", 400, None),
    "a null byte": (b'{"prompt": "a\\u0000b"}', 400, "prompt"),
    "infinity": (b'{"prompt": "a", "temperature": Infinity}', 400, "temperature"),
    "not a number": (b'{"prompt": "a", "guidance_scale": NaN}', 400, "guidance_scale"),
    "100,000 fields": (b'{"prompt": "a"' + b"".join(b', "f%d": 1' % i for i in range(90_000)) + b"}", 400, None),
}


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_get_a_specific_error(service: Service, name: str, path: str) -> None:
    body, status, param = HOSTILE[name]
    if len(body) > MAX_BODY_BYTES:
        status = 413
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(service.settings.base_url + path, content=body, headers=headers)
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert error["message"] and len(answer.content) < 4096, "the response repeats what was sent"
    assert param is None or error["param"] == param


def test_many_hostile_bodies_do_not_fill_memory(service: Service) -> None:
    """200 requests of a megabyte each; a gateway that kept a tenth of them would grow by 20 MiB."""
    url = f"{service.settings.base_url}/v1/images/generations"
    body = HOSTILE["a prompt of a megabyte"][0]
    with httpx.Client() as http:
        for _ in range(20):  # until buffers have reached their size
            http.post(url, content=body, headers={"Content-Type": "application/json"})
        before = memory_peak_bytes(service.gateway.pid)
        for _ in range(200):
            assert http.post(url, content=body, headers={"Content-Type": "application/json"}).status_code == 400
    assert memory_peak_bytes(service.gateway.pid) - before < 10 << 20
