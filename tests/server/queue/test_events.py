"""Following a job: previews in OpenAI's form, events that can be replayed anywhere, followers who vanish."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.cli.demo import free_port
from server.launcher import subprocesses
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from tests.server.harness import Service, accept, job_input, start, take, until

pytestmark = pytest.mark.anyio
GENERATE = "/v1/images/generations"
SLOW = {"prompt": "a cat", "seed": 3, "num_inference_steps": 40}


def sse(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Events as a browser would see them."""
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line == "" and event:
            yield event
            event = {}
        elif name in ("id", "event"):
            event[name] = value
        elif name == "data":
            event["data"] = json.loads(value)


def pixels(encoded: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(encoded))).tobytes()


def test_the_official_client_sees_the_picture_grow(new_service: Callable[..., Service]) -> None:
    """No open image engine sends partial images: clients that ask for them waited for one event."""
    service = new_service(fake_step_ms=5.0)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.images.generate(
            prompt="a cat", n=2, stream=True, partial_images=3, extra_body={"seed": 3, "num_inference_steps": 40}
        )
        events = [event.model_dump() for event in stream]
    partial = [event for event in events if event["type"] == "image_generation.partial_image"]
    done = [event for event in events if event["type"] == "image_generation.completed"]
    assert [(e["image_index"], e["partial_image_index"]) for e in sorted(partial, key=lambda e: e["image_index"])] == [
        (i, k) for i in range(2) for k in range(3)
    ]
    assert events[-2:] == done
    assert done[0]["usage"] == {
        "input_tokens": 2, "output_tokens": 32, "total_tokens": 34,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
    }  # fmt: skip
    for event in done:
        same = service.client.generate("a cat", seed=event["seed"], num_inference_steps=40)[0].data
        assert base64.b64decode(event["b64_json"]) == same
    looks = [pixels(event["b64_json"]) for event in (*partial, *done) if event["image_index"] == 0]
    assert len(set(looks)) == 4  # none of them is another one once more


def test_a_failure_in_the_middle_is_raised(service: Service) -> None:
    """The 200 is long gone: without an `error` in the data the client would end its loop in silence."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.images.generate(prompt="[raise]", stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert "3 attempts" in str(caught.value)


def test_wrong_combinations_are_refused(service: Service) -> None:
    """Before anything is accepted, and by name."""
    http = service.client._http
    for path, body, param in [
        (GENERATE, {"prompt": "x", "partial_images": 1}, "partial_images"),
        ("/v1/jobs", {"prompt": "x", "stream": True}, "stream"),
    ]:
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    # It said that 'n' must be 1, not 1.
    answer = http.post(GENERATE, json={"prompt": "x", "stream": True}, headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    job = service.client.submit("a cat")
    answer = http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert http.get("/v1/jobs/nobody/events").status_code == 404


def test_who_hangs_up_a_stream_cancels_its_job(new_service: Callable[..., Service]) -> None:
    """Pictures that nobody will see took the rows of others."""
    service = new_service(fake_step_ms=20.0)
    body = SLOW | {"stream": True, "partial_images": 1, "num_inference_steps": 1000}
    with httpx.stream("POST", service.settings.base_url + GENERATE, json=body) as answer:
        job_id = answer.headers["x-job-id"]
        until(lambda: service.client.job(job_id)["progress"]["step"] > 2)
    until(lambda: service.client.job(job_id)["status"] == "canceled")


def test_events_are_replayed_on_another_gateway(new_service: Callable[..., Service]) -> None:
    """A connection that broke, and a balancer that sends its owner elsewhere: nothing is missed, nothing told twice."""
    service = new_service(fake_step_ms=10.0)
    other = replace(service.settings, port=free_port())
    gateway = start("gateway", other)
    try:
        job = service.client.submit(**SLOW, partial_images=2)
        events = f"/v1/jobs/{job['id']}/events"
        with httpx.stream("GET", service.settings.base_url + events) as answer:
            following = sse(answer.iter_lines())
            heard = [next(following) for _ in range(4)]
        until(lambda: _answers(other.base_url))
        with httpx.stream("GET", other.base_url + events, headers={"Last-Event-ID": heard[-1]["id"]}) as answer:
            rest = list(sse(answer.iter_lines()))
    finally:
        subprocesses.stop(gateway, grace_s=10)
    with httpx.stream("GET", service.settings.base_url + events) as answer:
        everything = list(sse(answer.iter_lines()))
    assert [e["id"] for e in heard + rest] == [e["id"] for e in everything]
    kinds = [e["event"] for e in everything]
    assert kinds[0] == "status" and kinds[-1] == "succeeded" and kinds.count("partial_image") == 2
    assert everything[-1]["data"]["output"][0]["url"] == f"/v1/jobs/{job['id']}/images/0"
    steps = [e["data"]["step"] for e in everything if e["event"] == "progress"]
    assert steps == sorted(steps) and len(steps) > 1
    shown = next(e["data"]["url"] for e in everything if e["event"] == "partial_image")
    assert httpx.get(service.settings.base_url + shown).content[:4] == b"\x89PNG"
    assert httpx.get(service.settings.base_url + shown.replace("previews/0", "previews/9")).status_code == 404


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").is_success
    except httpx.TransportError:
        return False


def test_who_comes_after_the_end_hears_of_the_end(service: Service) -> None:
    """Nobody followed it, so nothing was kept; silence would look like a job that hangs."""
    job = service.client.submit("a cat")
    service.client.wait(job["id"])
    with httpx.stream("GET", f"{service.settings.base_url}/v1/jobs/{job['id']}/events") as answer:
        [end] = sse(answer.iter_lines())
    assert (end["event"], end["data"]["id"]) == ("succeeded", job["id"])


def test_a_thousand_followers_who_vanish_leave_nothing(new_service: Callable[..., Service]) -> None:
    """Each left a task that waited for the next event, and a socket."""
    service = new_service(workers=1, fake_step_ms=20.0)
    job = service.client.submit("a cat", num_inference_steps=20000)
    url = f"{service.settings.base_url}/v1/jobs/{job['id']}/events"

    def come_and_go(count: int) -> None:
        for _ in range(count):
            with httpx.stream("GET", url) as answer:
                next(answer.iter_raw())

    crowd = [threading.Thread(target=come_and_go, args=(50,)) for _ in range(20)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    until(lambda: _followers(service) == 0, what="the last follower's leaving")
    valkey = redis.Redis.from_url(service.settings.redis_url, decode_responses=True)
    keys = Keys(service.settings.namespace)
    assert [key for key in valkey.scan_iter(f"{keys.root}:events:*")] == [keys.events_stream(job["id"])]
    service.client.cancel(job["id"])
    until(lambda: valkey.ttl(keys.events_stream(job["id"])) > 0, what="an end for the events")


def _followers(service: Service) -> int:
    text = service.client._call("GET", "/metrics").text
    return int(next(float(line.split()[1]) for line in text.splitlines() if line.startswith("fluid_followers ")))


async def test_a_zombie_shows_nothing(queue: JobQueue, leases: LeaseQueue) -> None:
    """Its preview would replace the picture of the try that goes on."""
    await accept(queue, "a", partial_images=2)
    zombie = await take(leases)
    assert await leases.give_back(zombie) == "queued"
    await leases.store_preview(zombie, 0, 0, b"old")
    heir = await take(leases)
    await leases.store_preview(heir, 0, 1, b"new")
    keys = queue.keys
    assert not await queue.redis.exists(keys.preview_bytes("a", 0, 0))
    assert await queue.redis.ttl(keys.preview_bytes("a", 0, 1)) > 0


async def test_a_job_that_nobody_follows_has_no_events(queue: JobQueue, leases: LeaseQueue) -> None:
    """Ten writes a second for every job would be most of the queue's work."""
    await accept(queue, "a")
    lease = await take(leases)
    await leases.pulse([LeaseRenewal(lease, True, 3)], renew=True)
    assert not await queue.redis.exists(queue.keys.events_stream("a"))


@given(steps=st.integers(1, 300), count=st.integers(0, 3))
def test_previews_come_early_and_in_order(steps: int, count: int) -> None:
    """The first one within a third of the way, if there are steps enough, and never the finished picture."""
    found = job_input(num_inference_steps=steps, partial_images=count).preview_steps
    assert list(found) == sorted(set(found)) and all(0 < step < steps for step in found)
    if steps > 6:
        assert len(found) == count
        assert not count or found[0] <= steps / 3 + 0.5
