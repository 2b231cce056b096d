"""Our own clients: they stream, follow, come back after a broken connection, and repeat what is worth repeating."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from server.client import AsyncFluidClient, FluidClient, GeneratedImage, Preview
from server.client import protocol as wire
from server.errors import ServiceError
from tests.server.harness import Service, start

pytestmark = pytest.mark.anyio


def test_previews_then_the_picture(service: Service) -> None:
    """What the playground shows, for programs."""
    seen = list(service.client.stream("a cat", seed=4, num_inference_steps=16, partial_images=2))
    assert [type(each) for each in seen] == [Preview, Preview, GeneratedImage]
    assert seen[-1].data == service.client.generate("a cat", seed=4, num_inference_steps=16)[0].data
    with pytest.raises(ServiceError, match="3 attempts"):
        list(service.client.stream("[raise]"))


async def test_both_clients_agree(service: Service) -> None:
    """One of them forgot an await, or an option."""
    async with AsyncFluidClient(service.settings.base_url) as fluid:
        await fluid.wait_ready()
        [picture] = await fluid.generate("a cat", seed=5)
        seen = [each async for each in fluid.stream("a cat", seed=5, partial_images=0)]
        job = await fluid.submit("a cat", seed=5)
        events = [event async for event in fluid.follow(job["id"])]
        done = await fluid.wait(job["id"])
        listed = [each["id"] async for each in fluid.jobs(limit=1)]
        file = await fluid.image(job["id"])
        with pytest.raises(ServiceError, match="400"):
            await fluid.generate("")
        assert (await fluid.cancel(job["id"]))["status"] == done["status"] == "succeeded"
        assert [m["id"] for m in await fluid.models()] == ["fake"]
    same = await asyncio.to_thread(service.client.generate, "a cat", seed=5)
    assert picture.data == seen[0].data == file == same[0].data
    assert events[-1].type == "succeeded" and job["id"] in listed
    names = {name for name in dir(FluidClient) if not name.startswith("_")}
    assert names == {name for name in dir(AsyncFluidClient) if not name.startswith("_")}


def test_following_goes_on_after_the_gateway_died(new_service: Callable[..., Service]) -> None:
    """A deployment of the gateway ended every wait."""
    service = new_service(fake_step_ms=20.0, lease_s=10.0)
    with FluidClient(service.settings.base_url, max_retries=6) as client:
        job = client.submit("a cat", num_inference_steps=150)
        events = client.follow(job["id"])
        heard = [next(events) for _ in range(3)]
        service.gateway.kill()
        service.gateway.wait(timeout=10)
        restart = threading.Thread(target=lambda: setattr(service, "gateway", start("gateway", service.settings)))
        restart.start()
        heard += list(events)
        restart.join()
    assert heard[-1].type == "succeeded"
    ids = [event.id for event in heard]
    assert ids == sorted(set(ids), key=ids.index)  # nothing twice


class Moody(BaseHTTPRequestHandler):
    """Answers from a list, and remembers what it was sent."""

    answers: list[tuple[int, dict[str, str]]]
    keys: list[str | None]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers["idempotency-key"])
        status, headers = self.answers.pop(0)
        body = b'{"id": "job_1", "error": {"message": "m", "code": "c"}}'
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """As a proxy might write it anew: not in ASCII."""
        line = 'data: {"a": "1\u20282\x853"}\n\n' if "events" in self.path else '{"a": "1\u20282\x853"}\n'
        body = line.replace("data:", "id: 1\nevent: succeeded\ndata:").encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def moody() -> Iterator[ThreadingHTTPServer]:
    Moody.keys = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_retries_repeat_the_same_request(moody: ThreadingHTTPServer) -> None:
    """With another key each, a retry would be another job."""
    Moody.answers = [
        (429, {"Retry-After": "0"}),
        (503, {"Retry-After": "0"}),
        (202, {}),
        (500, {}),
        (503, {"Retry-After": "999"}),
    ]
    with FluidClient(f"http://127.0.0.1:{moody.server_port}") as client:
        assert client.submit("a cat")["id"] == "job_1"
        assert len(Moody.keys) == 3 and len(set(Moody.keys)) == 1
        for status in (500, 503):  # not worth it; and not before the caller has other things to do
            with pytest.raises(ServiceError, match=str(status)):
                client.submit("a cat")
    assert len(Moody.keys) == 5


def test_pauses_grow_and_obey() -> None:
    """Retry-After may be a date, too; nonsense in it is no reason to crash."""
    for attempt in range(8):
        assert 0.37 <= (wire.pause_s(attempt, None) or 0) <= wire.LONGEST_PAUSE_S
    assert wire.pause_s(0, httpx.Response(429, headers={"Retry-After": "7"})) == 7
    assert wire.pause_s(0, httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
    assert (wire.pause_s(0, httpx.Response(429, headers={"Retry-After": "soon"})) or 0) > 0.3
    assert wire.pause_s(0, httpx.Response(400)) is None


def test_no_service_is_said_so() -> None:
    """Not a traceback of the HTTP library; streams and results let one through."""
    with FluidClient("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(ServiceError, match="fluid serve"):
        client.models()
    for use in (lambda c: c.stream("a cat"), lambda c: c.batch_results("batch_1")):
        with (
            FluidClient("http://127.0.0.1:9", max_retries=0) as client,
            pytest.raises(ServiceError, match="fluid serve"),
        ):
            next(use(client))


async def test_no_service_is_said_so_by_the_other_client() -> None:
    """Streams and results let httpx.ConnectError through."""
    async with AsyncFluidClient("http://127.0.0.1:9", max_retries=0) as client:
        for found in (client.stream("a cat"), client.batch_results("batch_1")):
            with pytest.raises(ServiceError, match="fluid serve"):
                await anext(found)


async def test_only_line_feeds_end_lines(moody: ThreadingHTTPServer) -> None:
    """U+2028 and U+0085 are valid inside JSON, and cut results and events in pieces."""
    url, expected = f"http://127.0.0.1:{moody.server_port}", {"a": "1\u20282\x853"}
    with FluidClient(url) as client:
        assert list(client.batch_results("batch_1")) == [expected]
        assert [event.data for event in client.follow("job_1")] == [expected]
    async with AsyncFluidClient(url) as fluid:
        assert [each async for each in fluid.batch_results("batch_1")] == [expected]
        assert [event.data async for event in fluid.follow("job_1")] == [expected]
    reader = wire.LineReader()
    pieces = "é\r\nx\n\n".encode()
    assert [line for i in range(len(pieces)) for line in reader.feed(pieces[i : i + 1])] == ["é", "x", ""]
