"""Edge cases of following: odd event ids, silence, outages, joining a running job; and HTTP around them."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
import redis
from redis.exceptions import ResponseError

from server.cli.demo import free_port
from server.gateway.app import create_app
from server.gateway.responses import sse
from server.model_info import ModelInfo
from server.queue import events
from server.queue.events import Events
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.redis_client import connect
from server.queue.watcher import JobWatcher
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from tests.server.harness import Hold, Service, accept, until
from tests.server.inprocess import served

pytestmark = pytest.mark.anyio
GENERATE = "/v1/images/generations"


@pytest.mark.parametrize("late", ["99999999999999999999-0", "1-99999999999999999999", "0-18446744073709551615"])
def test_an_event_id_beyond_64_bits_is_rejected(service: Service, late: str) -> None:
    """Redis rejected it, which used to be taken for an outage: the follower of an ended job waited forever."""
    job = service.client.submit("a cat")
    url = f"{service.settings.base_url}/v1/jobs/{job['id']}/events"
    answer = httpx.get(url, headers={"Last-Event-ID": late})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    most = httpx.get(url, headers={"Last-Event-ID": "18446744073709551614-18446744073709551614"})
    assert "event: succeeded" in most.text


async def test_only_an_outage_is_waited_out(queue: JobQueue) -> None:
    """Any Redis error used to be retried forever, twice a second."""
    await accept(queue, "a")
    followed = Events(queue, JobWatcher(queue.redis, queue, queue.keys.namespace)).follow("a", "99999999999999999999-0")
    with pytest.raises(ResponseError):
        await anext(followed)


async def test_silence_and_outages_yield_pings(
    queue: JobQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies close silent connections, and during a Redis outage nothing used to be sent at all."""
    monkeypatch.setattr(events, "PING_S", 0.05)
    monkeypatch.setattr(events, "RETRY_S", 0.05)
    await accept(queue, "a")
    watcher = JobWatcher(queue.redis, queue, queue.keys.namespace)
    silent = Events(queue, watcher).follow("a")
    assert [await anext(silent) for _ in range(2)] == [None, None]
    await silent.aclose()
    async with connect(f"redis://127.0.0.1:{free_port()}/0", 0.2) as unreachable:
        away = Events(JobQueue(unreachable, settings), watcher).follow("a")
        assert [await anext(away) for _ in range(2)] == [None, None]
        await away.aclose()


def test_a_silent_stream_has_pings_on_the_wire(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings keep proxies from closing the connection; they went untested, because 15 s are too long for a test."""
    monkeypatch.setattr(events, "PING_S", 0.05)
    info = ModelInfo.from_mapping(FakeEngine(1, 0).info())
    with redis.Redis.from_url(settings.redis_url) as valkey:
        valkey.hset(Keys(settings.namespace).models_hash, info.id, info.to_json())
    with served(create_app(settings)) as port:
        home = f"http://127.0.0.1:{port}"
        job = httpx.post(f"{home}/v1/jobs", json={"prompt": "a cat"}).json()
        with httpx.stream("GET", f"{home}/v1/jobs/{job['id']}/events") as answer:
            text = ""
            for part in answer.iter_text():
                text += part
                if text.count(sse.PING.decode()) >= 2:
                    break
    assert "event: status" in text


def test_a_stream_that_joins_a_running_job_ends_with_it(new_service: Callable[..., Service], hold: Hold) -> None:
    """Once, only a job followed from its start notified its followers: others learned of its end with the next ping,
    up to 15 s late. Here there is no ping before it."""
    service = new_service()
    headers = {"Idempotency-Key": "same"}
    body = {"prompt": hold.prompt()}
    url = service.settings.base_url + GENERATE

    def generate(stream: bool) -> None:
        with httpx.stream("POST", url, json=body | {"stream": stream}, headers=headers) as answer:
            if stream:  # it has joined
                hold.release()
            text = answer.read().decode()
        assert answer.status_code == 200
        assert not stream or ("image_generation.completed" in text and sse.PING.decode() not in text)

    first = threading.Thread(target=generate, args=(False,))
    first.start()
    until(lambda: any(job["status"] == "processing" for job in _jobs(service)), what="the first one's job")
    generate(True)
    first.join()


def _jobs(service: Service) -> list[dict[str, str]]:
    found: list[dict[str, str]] = httpx.get(f"{service.settings.base_url}/v1/jobs").json()["data"]
    return found


def test_an_event_is_one_line_to_every_parser() -> None:
    """A prompt with U+2028, U+2029 or U+0085 used to be several lines to parsers that break there, httpx among them."""
    text = sse.message({"prompt": "a\u2028b\u2029c\u0085d\x0be"}).decode()
    assert len(text.splitlines()) == 2 and json.loads(text.removeprefix("data: "))["prompt"][1] == "\u2028"


@pytest.mark.parametrize(("wait", "status"), [("wait=50.5", 200), ('wait="50"', 200), ("wait=0.01", 202)])
def test_prefer_wait_accepts_fractions_of_a_second(service: Service, wait: str, status: int) -> None:
    """`wait=2.5` used to be silently ignored, as was `wait=soon`."""
    steps = 20_000 if status == 202 else 4  # 1,000 have ended within a stall of the gateway
    body = {"prompt": "a cat", "num_inference_steps": steps}
    answer = httpx.post(f"{service.settings.base_url}/v1/jobs", json=body, headers={"Prefer": f"respond-async, {wait}"})
    assert answer.status_code == status


@pytest.mark.parametrize("wait", ["wait=soon", "wait=-1", "wait=", "wait=1e3", "wait=2.5s"])
def test_an_invalid_wait_is_rejected(service: Service, wait: str) -> None:
    """It must not be ignored, and nothing may be accepted."""
    url, before = f"{service.settings.base_url}/v1/jobs", len(_jobs(service))
    answer = httpx.post(url, json={"prompt": "a cat"}, headers={"Prefer": wait})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Prefer")
    assert len(_jobs(service)) == before


def test_readiness_does_not_reveal_the_address_of_redis(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """The probe needs no key, and its response used to name the host and port that the gateway could not reach."""
    port = free_port()
    with served(create_app(replace(settings, redis_url=f"redis://127.0.0.1:{port}/0"))) as gateway:
        answer = httpx.get(f"http://127.0.0.1:{gateway}/health/ready")
    assert answer.status_code == 503 and str(port) not in answer.text and "queue does not answer" in answer.text
    assert str(port) in caplog.text


def test_an_unknown_query_parameter_is_rejected(service: Service) -> None:
    """`?cursor=..&state=failed` used to return all jobs, from the first."""
    url = f"{service.settings.base_url}/v1/jobs"
    answer = httpx.get(url, params={"limit": 2, "state": "failed"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "state")
    assert error["message"].endswith("Valid ones: limit, after, status.")
    assert httpx.get(url, params={"limit": 2, "status": "failed"}).status_code == 200
