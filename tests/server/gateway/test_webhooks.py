"""Webhooks: signed as the standard says, and attempted again until the receiver acknowledges."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
import redis
from prometheus_client import CollectorRegistry, Counter

from server.errors import ConfigError, ServiceError
from server.gateway import webhooks
from server.gateway.webhooks import Delivery, parse_secret, sign
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from tests.server.harness import Service, http_server, start, until

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver(BaseHTTPRequestHandler):
    """Record every request; respond with the given statuses, and then with 204."""

    received: list[tuple[dict[str, str], bytes]]
    statuses: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        status = self.statuses.pop(0) if self.statuses else 204
        self.send_response(status)
        if status == 302:
            self.send_header("location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def receiver_url() -> Iterator[str]:
    Receiver.received, Receiver.statuses = [], []
    with http_server(Receiver) as server:
        yield f"http://localhost:{server.server_port}/hook"


def test_the_end_of_a_job_is_delivered_and_signed(new_service: Callable[..., Service], receiver_url: str) -> None:
    """A receiver that verifies signatures as the standard says must accept ours."""
    service = new_service(webhook_secret=SECRET, webhook_private="allow")
    jobs = [service.client.submit(prompt, webhook=receiver_url) for prompt in ("a cat", "[raise]")]
    until(lambda: len(Receiver.received) == 2)
    messages = {json.loads(body)["data"]["id"]: (headers, body) for headers, body in Receiver.received}
    for job, kind in zip(jobs, ("job.succeeded", "job.failed"), strict=True):
        headers, body = messages[job["id"]]
        message = json.loads(body)
        assert (message["type"], message["data"]["urls"]["get"]) == (kind, f"/v1/jobs/{job['id']}")
        assert headers["webhook-id"] == f"msg_{job['id']}"
        expected = sign(KEY, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == expected
        assert headers["host"].startswith("localhost:")
    until(lambda: 'fluid_webhooks_total{outcome="delivered"} 2.0' in service.client._call("GET", "/metrics").text)


def test_a_failed_delivery_is_attempted_again_after_a_restart(
    new_service: Callable[..., Service], receiver_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver and the gateway restart at the same time: the same message still arrives."""
    Receiver.statuses = [500, 302]
    service = new_service(webhook_secret=SECRET, webhook_private="allow")
    job = service.client.submit("a cat", webhook=receiver_url)
    webhook = Keys(service.settings.namespace).webhook_hash(job["id"])
    with redis.Redis.from_url(service.settings.redis_url) as valkey:
        # A kill before the failure is counted delays the second attempt by a visibility timeout of 60 s.
        until(lambda: valkey.hget(webhook, "attempts") == b"1", what="the first attempt")
    service.gateway.kill()
    service.gateway.wait(timeout=60)
    service.gateway = start("gateway", service.settings)
    until(lambda: len(Receiver.received) == 2, what="the second attempt")
    assert Receiver.received[0][1] == Receiver.received[1][1]
    assert Receiver.received[0][0]["webhook-id"] == Receiver.received[1][0]["webhook-id"]


def test_undeliverable_webhooks_are_rejected_at_submission(new_service: Callable[..., Service]) -> None:
    """The caller should learn it at once, not after three days of attempts."""
    service = new_service(webhook_secret=SECRET, workers=1)
    for url in ("ftp://example.com/", "http://", "http://127.0.0.1/", "http://[::1]:80/", "http://a:b@example.com/"):
        with pytest.raises(ServiceError) as caught:
            service.client.submit("a cat", webhook=url)
        assert (caught.value.status, caught.value.param) == (400, "webhook"), url
    with pytest.raises(ServiceError) as caught:
        service.client.generate("a cat", webhook="https://example.com/")
    assert caught.value.param == "webhook"


def test_webhooks_need_a_secret(service: Service) -> None:
    """Anyone could forge an unsigned message."""
    with pytest.raises(ServiceError, match="FLUID_WEBHOOK_SECRET"):
        service.client.submit("a cat", webhook="https://example.com/")


@pytest.mark.parametrize("url", ["http://a..b/", "http://example.com/\x01", f"http://{'a' * 70}.com/"])
async def test_a_malformed_url_is_a_failed_attempt(queue: JobQueue, url: str) -> None:
    """An older gateway accepted such URLs. Their exception counted as a bug, not as a failed attempt, so that the
    attempts never ended."""
    async with httpx.AsyncClient() as http:
        assert await webhooks_of(queue)._send(http, Delivery("a", url, 0, "{}")) == "failed"


async def test_a_receiver_that_responds_byte_by_byte_is_a_failed_attempt(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout used to apply to each byte of the response headers, so such a delivery took a minute."""
    monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 0.3)

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
    async with server, httpx.AsyncClient() as http:
        outcome = await webhooks_of(queue)._send(http, Delivery("a", f"http://127.0.0.1:{port}/", 0, "{}"))
        await over.wait()
    assert outcome == "failed"


def webhooks_of(queue: JobQueue) -> webhooks.Webhooks:
    registry = CollectorRegistry()
    sent, bugs = (Counter(name, "", ("outcome",), registry=registry) for name in ("sent", "bugs"))
    return webhooks.Webhooks(queue, KEY, private=True, sent=sent, bugs=bugs)


def test_the_signature_matches_the_standard() -> None:
    """The example of the specification's reference libraries."""
    secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["secret", "whsec_", "whsec_abc", "whsec_" + "A" * 200])
def test_a_malformed_secret_stops_the_start(text: str) -> None:
    """The error says how to make a valid one."""
    with pytest.raises(ConfigError, match="head -c 32"):
        parse_secret(text)


def test_there_are_ten_attempts_over_three_days() -> None:
    """The first one and nine more."""
    assert len(webhooks.BACKOFF_S) + 1 == 10 and 3 * 86400 < sum(webhooks.BACKOFF_S) < 4 * 86400
