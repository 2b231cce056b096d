"""Both clients: streaming, following a job across a broken connection, and retries."""

import asyncio
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from server.client import AsyncFluidClient, FluidClient, GeneratedImage, Preview
from server.client.line_readers import LineReader
from server.client.retries import LONGEST_DELAY_S, retry_delay_s
from server.errors import ServiceError
from tests.server.harness import Hold, Service, http_server, start

pytestmark = pytest.mark.anyio


def test_stream_yields_previews_then_the_image(service: Service, hold: Hold) -> None:
    """The streamed image is the same as the one that `generate` returns."""
    prompt, seen = hold.prompt(step=12), list[Preview | GeneratedImage]()  # the second preview is of step 11
    for each in service.client.stream(prompt, seed=4, num_inference_steps=16, partial_images=2):
        seen.append(each)
        if len(seen) == 2:
            hold.release()
    assert [type(each) for each in seen] == [Preview, Preview, GeneratedImage]
    assert seen[-1].data == service.client.generate(prompt, seed=4, num_inference_steps=16)[0].data
    with pytest.raises(ServiceError, match="3 attempts"):
        list(service.client.stream("[raise]"))


async def test_every_method_works_with_asyncio(service: Service) -> None:
    """The asynchronous client must await everything; its twin is exercised by all other tests."""
    async with AsyncFluidClient(service.settings.base_url) as fluid:
        await fluid.wait_ready()
        [image] = await fluid.generate("a cat", seed=5)
        seen = [each async for each in fluid.stream("a cat", seed=5, partial_images=0)]
        job = await fluid.submit("a cat", seed=5)
        events = [event async for event in fluid.follow(job["id"])]
        done = await fluid.wait(job["id"])
        listed = [each["id"] async for each in fluid.jobs(limit=1)]
        file = await fluid.image(job["id"])
        with pytest.raises(ServiceError, match="400"):
            await fluid.generate("")
        with pytest.raises(ServiceError, match=r"'model' 'c' is not served here\. Served: fake") as unknown:
            await fluid.generate("a cat", model="c")
        assert (unknown.value.status, unknown.value.code, unknown.value.param) == (404, "model_not_found", "model")
        assert (await fluid.cancel(job["id"]))["status"] == done["status"] == "succeeded"
        assert [m["id"] for m in await fluid.models()] == ["fake"]
    same = await asyncio.to_thread(service.client.generate, "a cat", seed=5)
    assert image.data == seen[0].data == file == same[0].data
    assert events[-1].type == "succeeded" and job["id"] in listed


@pytest.mark.parametrize("named", ["", "one"])
async def test_a_transparent_background_is_refused_without_alpha(named: str) -> None:
    """The service would send an opaque image with a warning. Nothing is sent for generation; auto asks nothing."""
    able = False
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.raw_path.decode()} {request.content.decode()}")
        model = {"id": "one", "transparent": able}
        return httpx.Response(
            200, json={"data": [model], **model, "output_format": "png", "metrics": {}, "warnings": []}
        )

    options = {"model": named} if named else {}
    url = "http://service"
    transport = httpx.MockTransport(respond)
    with FluidClient(url) as plain:
        plain._http.close()
        plain._http = httpx.Client(transport=transport, base_url=url)
        for call in (plain.generate, plain.submit, lambda prompt, **more: list(plain.stream(prompt, **more))):
            with pytest.raises(ServiceError, match="one generates no alpha") as refused:
                call("an apple", background="transparent", **options)  # type: ignore[operator]
            assert (refused.value.status, refused.value.param) == (400, "background")
        assert asked == [f"GET /v1/models{'/one' if named else ''} "] * 3
        plain.submit("an apple", background="auto", **options)
        able = True
        plain.submit("an apple", background="transparent", **options)
    assert ["POST" in each for each in asked[3:]] == [True, False, True]
    assert '"background":"transparent"' in asked[-1]
    able = False
    async with AsyncFluidClient(url) as fluid:
        await fluid._http.aclose()
        fluid._http = httpx.AsyncClient(transport=transport, base_url=url)
        for edit in (fluid.vary(b"", background="transparent"), fluid.edit("x", b"", background="transparent")):
            with pytest.raises(ServiceError, match="no alpha"):
                await edit


def test_follow_resumes_after_a_gateway_restart(new_service: Callable[..., Service]) -> None:
    """A deployment of the gateway must not end a wait, nor deliver an event twice."""
    service = new_service(fake_step_ms=20.0, lease_s=10.0)
    with FluidClient(service.settings.base_url, max_retries=10) as client:
        job = client.submit("a cat", num_inference_steps=150)
        events = client.follow(job["id"])
        received = [next(events) for _ in range(3)]
        service.gateway.kill()
        service.gateway.wait(timeout=60)
        # Not in a thread: the end of the one that started a process ends the process.
        service.gateway = start("gateway", service.settings)
        received += list(events)
    assert received[-1].type == "succeeded"
    ids = [event.id for event in received]
    assert ids == sorted(set(ids), key=ids.index)


class ScriptedHandler(BaseHTTPRequestHandler):
    """Sends the responses of a list in order, and records each request's Idempotency-Key."""

    responses: list[tuple[int, dict[str, str]]]
    keys: list[str | None]
    refusals: list[int]  #: statuses of the next downloads, before one succeeds

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers["idempotency-key"])
        status, headers = self.responses.pop(0)
        body = b'{"id": "job_1", "error": {"message": "m", "code": "c"}}'
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """JSON that is not ASCII-escaped, as a proxy might re-encode it."""
        line = 'data: {"a": "1\u20282\x853"}\n\n' if "events" in self.path else '{"a": "1\u20282\x853"}\n'
        body = line.replace("data:", "id: 1\nevent: succeeded\ndata:").encode()
        self.send_response(self.refusals.pop(0) if self.refusals else 200)
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    ScriptedHandler.keys, ScriptedHandler.refusals = [], []
    with http_server(ScriptedHandler) as server:
        yield server


def test_retries_reuse_the_idempotency_key(scripted: ThreadingHTTPServer) -> None:
    """With a new key for each attempt, a retry would be another job."""
    ScriptedHandler.responses = [
        (429, {"Retry-After": "0"}),
        (503, {"Retry-After": "0"}),
        (202, {}),
        (500, {}),
        (503, {"Retry-After": "999"}),
    ]
    with FluidClient(f"http://127.0.0.1:{scripted.server_port}") as client:
        assert client.submit("a cat")["id"] == "job_1"
        assert len(ScriptedHandler.keys) == 3 and len(set(ScriptedHandler.keys)) == 1
        for status in (500, 503):  # never retried; Retry-After is too long
            with pytest.raises(ServiceError, match=str(status)):
                client.submit("a cat")
    assert len(ScriptedHandler.keys) == 5


def test_what_arrives_line_by_line_is_retried_as_well(scripted: ThreadingHTTPServer) -> None:
    """A gateway that restarted behind a proxy ended the wait for a job, or a batch's download, by its first 503."""
    with FluidClient(f"http://127.0.0.1:{scripted.server_port}") as client:
        for received in (client.follow("job_1"), client.batch_results("batch_1")):
            ScriptedHandler.refusals = [503, 502]
            assert len(list(received)) == 1 and ScriptedHandler.refusals == []
        ScriptedHandler.refusals = [503] * 3
        with pytest.raises(ServiceError, match="503"):
            list(client.batch_results("batch_1"))
        ScriptedHandler.refusals = [500]
        with pytest.raises(ServiceError, match="500"):
            list(client.follow("job_1"))


def test_retry_delay_backs_off_and_honours_retry_after() -> None:
    """Retry-After may also be a date; a malformed one falls back to the backoff."""
    for attempt in range(8):
        assert 0.37 <= (retry_delay_s(attempt, None) or 0) <= LONGEST_DELAY_S
    assert retry_delay_s(0, httpx.Response(429, headers={"Retry-After": "7"})) == 7
    assert retry_delay_s(0, httpx.Response(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
    assert (retry_delay_s(0, httpx.Response(429, headers={"Retry-After": "soon"})) or 0) > 0.3
    assert retry_delay_s(0, httpx.Response(400)) is None


def test_an_unreachable_service_is_a_service_error() -> None:
    """Streams and batch results used to let httpx.ConnectError through."""
    with FluidClient("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(ServiceError, match="fluid serve"):
        client.models()
    for use in (lambda c: c.stream("a cat"), lambda c: c.batch_results("batch_1")):
        with (
            FluidClient("http://127.0.0.1:9", max_retries=0) as client,
            pytest.raises(ServiceError, match="fluid serve"),
        ):
            next(use(client))


async def test_an_unreachable_service_is_a_service_error_with_asyncio() -> None:
    """The same for the asynchronous client."""
    async with AsyncFluidClient("http://127.0.0.1:9", max_retries=0) as client:
        for results in (client.stream("a cat"), client.batch_results("batch_1")):
            with pytest.raises(ServiceError, match="fluid serve"):
                await anext(results)


async def test_lines_end_at_line_feeds_only(scripted: ThreadingHTTPServer) -> None:
    """U+2028 and U+0085 are valid inside JSON strings, and once split results and events."""
    url, expected = f"http://127.0.0.1:{scripted.server_port}", {"a": "1\u20282\x853"}
    with FluidClient(url) as client:
        assert list(client.batch_results("batch_1")) == [expected]
        assert [event.data for event in client.follow("job_1")] == [expected]
    async with AsyncFluidClient(url) as fluid:
        assert [each async for each in fluid.batch_results("batch_1")] == [expected]
        assert [event.data async for event in fluid.follow("job_1")] == [expected]
    reader = LineReader()
    data = "é\r\nx\n\n".encode()
    assert [line for i in range(len(data)) for line in reader.feed(data[i : i + 1])] == ["é", "x", ""]


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"])
def test_a_loopback_service_is_reached_past_a_proxy(
    proxy: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HTTP_PROXY set, `fluid serve` and `fluid demo` waited for a service that the proxy could not reach."""
    for name in PROXIES:
        monkeypatch.setenv(name, proxy)
    with FluidClient(service.settings.base_url) as client:
        assert client.ready() == (True, "")
        assert client.models()


def test_a_remote_service_is_reached_through_the_proxy(
    scripted: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some networks have no other way out; `use_proxy=False` is for one's own service on another address."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{scripted.server_port}")
    ScriptedHandler.responses = [(202, {})]
    with FluidClient("http://fluid.invalid", max_retries=0) as client:
        assert client.submit("a cat")["id"] == "job_1"
    direct = FluidClient("http://fluid.invalid", max_retries=0, use_proxy=False)
    with direct, pytest.raises(ServiceError, match="No response"):
        direct.submit("a cat")


def test_an_unusable_proxy_is_a_service_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a ValueError or an ImportError of the HTTP client."""
    for name in PROXIES:
        monkeypatch.setenv(name, "nonsense://x")
    with pytest.raises(ServiceError, match="HTTP_PROXY"):
        FluidClient("http://fluid.invalid")
