"""Webhooks: signed as the standard says, repeated until heard, never sent where they must not go."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from server.errors import ConfigError, InvalidRequest, ServiceError
from server.gateway import webhooks
from server.gateway.webhooks import Delivery, Forbidden, check_url, is_public, parse_secret, resolve_address, sign
from server.queue.job_queue import JobQueue
from tests.server.harness import Service, start, until

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Ear(BaseHTTPRequestHandler):
    """Remembers what it heard; answers with what it was told to, 204 at last."""

    heard: list[tuple[dict[str, str], bytes]]
    answers: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
        status = self.answers.pop(0) if self.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def ear() -> Iterator[str]:
    Ear.heard, Ear.answers = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/hook"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_of_a_job_is_told_and_signed(new_service: Callable[..., Service], ear: str) -> None:
    """A receiver that checks the signature as the standard says must believe us; polling is for those without one."""
    service = new_service(webhook_secret=SECRET, webhook_private="allow")
    jobs = [service.client.submit(prompt, webhook=ear) for prompt in ("a cat", "[raise]")]
    until(lambda: len(Ear.heard) == 2, seconds=30)
    told = {json.loads(body)["data"]["id"]: (headers, body) for headers, body in Ear.heard}
    for job, kind in zip(jobs, ("job.succeeded", "job.failed"), strict=True):
        headers, body = told[job["id"]]
        message = json.loads(body)
        assert (message["type"], message["data"]["urls"]["get"]) == (kind, f"/v1/jobs/{job['id']}")
        assert headers["webhook-id"] == f"msg_{job['id']}"
        expected = sign(KEY, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == expected
        assert headers["host"].startswith("localhost:")
    until(lambda: 'fluid_webhooks_total{outcome="delivered"} 2.0' in service.client._call("GET", "/metrics").text)


def test_a_failed_delivery_is_repeated_after_a_restart(
    new_service: Callable[..., Service], ear: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver's deployment and ours at the same time: the news still arrives, the same message."""
    Ear.answers = [500, 302]
    service = new_service(webhook_secret=SECRET, webhook_private="allow")
    service.client.submit("a cat", webhook=ear)
    until(lambda: len(Ear.heard) == 1)
    service.gateway.kill()
    service.gateway.wait(timeout=10)
    service.gateway = start("gateway", service.settings)
    until(lambda: len(Ear.heard) == 2, seconds=75, what="the second try")  # after 5 s, or 60 s if the kill came first
    assert Ear.heard[0][1] == Ear.heard[1][1]
    assert Ear.heard[0][0]["webhook-id"] == Ear.heard[1][0]["webhook-id"]


def test_wrong_webhooks_are_refused_at_once(new_service: Callable[..., Service]) -> None:
    """Not three days later."""
    service = new_service(webhook_secret=SECRET, workers=1)
    for url in ("ftp://example.com/", "http://", "http://127.0.0.1/", "http://[::1]:80/", "http://a:b@example.com/"):
        with pytest.raises(ServiceError) as caught:
            service.client.submit("a cat", webhook=url)
        assert (caught.value.status, caught.value.param) == (400, "webhook"), url
    with pytest.raises(ServiceError) as caught:
        service.client.generate("a cat", webhook="https://example.com/")
    assert caught.value.param == "webhook"


def test_without_a_secret_there_are_none(service: Service) -> None:
    """An unsigned message is one that anybody can forge."""
    with pytest.raises(ServiceError, match="FLUID_WEBHOOK_SECRET"):
        service.client.submit("a cat", webhook="https://example.com/")


async def test_names_that_mean_neighbours_are_refused() -> None:
    """`localhost`, or any name that its owner points at 10.0.0.1, is inside."""
    with pytest.raises(Forbidden, match="private"):
        await resolve_address("http://localhost:80/", private=False)
    address = await resolve_address("https://localhost:8443/a?b=c", private=True)
    assert address.url.host in ("127.0.0.1", "::1") and address.url.path == "/a"
    assert (address.host, address.sni_hostname) == ("localhost:8443", "localhost")
    for url in ("http://10.1.2.3/", "http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/"):
        with pytest.raises(InvalidRequest):
            check_url(url, private=False)


@pytest.mark.parametrize(
    "address",
    ["64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "fec0::1", "::127.0.0.1",
     "::ffff:0:127.0.0.1", "::ffff:127.0.0.1", "224.0.0.1", "ff0e::1"],
)  # fmt: skip
def test_detours_to_neighbours_are_refused(address: str) -> None:
    """Python calls translated, tunnelled and multicast addresses global: NAT64 of the cloud's metadata passed."""
    assert not is_public(address)
    with pytest.raises(InvalidRequest, match="private address"):
        check_url(f"http://[{address}]/" if ":" in address else f"http://{address}/", private=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_the_internet_is_not_refused(address: str) -> None:
    """Refusing all that looks odd would be no help."""
    assert is_public(address)


@pytest.mark.parametrize("url", ["http://a..b/", "http://example.com/\x01", f"http://{'a' * 70}.com/"])
async def test_an_address_that_is_none_is_refused_and_never_tried_for_ever(queue: JobQueue, url: str) -> None:
    """Such addresses were accepted, and what they raised was a bug and no failed try: they were tried for ever. One
    that an older gateway took is a failed try."""
    with pytest.raises(InvalidRequest, match="not an address"):
        check_url(url, private=True)
    async with httpx.AsyncClient() as http:
        assert await webhooks_of(queue)._send(http, Delivery("a", url, 0, "{}")) == "failed"


async def test_an_endpoint_that_drips_is_a_failed_try(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of the answer's headers now and then: the limit was for each, and the delivery took a minute."""
    monkeypatch.setattr(webhooks, "ANSWER_S", 0.3)

    over = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            for byte in b"HTTP/1.1 204 No Content\r\nX-Slow: " + b"x" * 200:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    began = time.monotonic()
    async with server, httpx.AsyncClient() as http:
        outcome = await webhooks_of(queue)._send(http, Delivery("a", f"http://127.0.0.1:{port}/", 0, "{}"))
        took_s = time.monotonic() - began
        await over.wait()
    assert outcome == "failed" and took_s < 5


def webhooks_of(queue: JobQueue) -> webhooks.Webhooks:
    registry = CollectorRegistry()
    sent, bugs = (Counter(name, "", ("outcome",), registry=registry) for name in ("sent", "bugs"))
    return webhooks.Webhooks(queue, KEY, private=True, sent=sent, bugs=bugs)


def test_the_signature_is_the_standards() -> None:
    """The example of the specification's reference libraries."""
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["secret", "whsec_", "whsec_abc", "whsec_" + "A" * 200])
def test_a_wrong_secret_stops_the_start(text: str) -> None:
    """And says how to make a right one."""
    with pytest.raises(ConfigError, match="head -c 32"):
        parse_secret(text)


def test_ten_tries() -> None:
    """As the issue of such things is usually counted: the first one and nine more, over three days."""
    assert len(webhooks.BACKOFF_S) + 1 == 10 and 3 * 86400 < sum(webhooks.BACKOFF_S) < 4 * 86400
