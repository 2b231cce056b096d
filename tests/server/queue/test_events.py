"""Following a job: previews in OpenAI's form, events that replay on any gateway, followers that disconnect."""

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
from tests.server.harness import Hold, Service, accept, job_input, start, take, until

pytestmark = pytest.mark.anyio
GENERATE = "/v1/images/generations"
STEPS = {"seed": 3, "num_inference_steps": 40}


def sse(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Parse events as a browser does."""
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


def test_the_official_client_receives_previews(service: Service, hold: Hold) -> None:
    """Without partial images, a client that asks for them gets a single event at the end."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.images.generate(
            prompt=hold.prompt(step=35), n=2, stream=True, partial_images=3, extra_body=STEPS
        )  # held after the third preview, at step 30: one that is not stored before the image is dropped
        events = []
        for event in stream:
            events.append(event.model_dump())
            if len(events) == 6:
                hold.release()
    partial = [event for event in events if event["type"] == "image_generation.partial_image"]
    done = [event for event in events if event["type"] == "image_generation.completed"]
    assert [(e["image_index"], e["partial_image_index"]) for e in sorted(partial, key=lambda e: e["image_index"])] == [
        (i, k) for i in range(2) for k in range(3)
    ]
    assert events[-2:] == done
    assert done[0]["usage"] == {
        "input_tokens": 5, "output_tokens": 32, "total_tokens": 37,
        "input_tokens_details": {"text_tokens": 5, "image_tokens": 0},
    }  # fmt: skip
    for event in done:
        same = service.client.generate(hold.prompt(step=35), seed=event["seed"], num_inference_steps=40)[0].data
        assert base64.b64decode(event["b64_json"]) == same
    looks = [pixels(event["b64_json"]) for event in (*partial, *done) if event["image_index"] == 0]
    assert len(set(looks)) == 4  # no two of them are the same


def test_a_failure_in_mid_stream_is_raised_by_the_client(service: Service) -> None:
    """The 200 was sent long ago: without an `error` in the data the client would end its loop silently."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        stream = client.images.generate(prompt="[raise]", stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert "3 attempts" in str(caught.value)


def test_invalid_combinations_are_rejected(service: Service) -> None:
    """The error names the parameter, and nothing is accepted."""
    http = service.client._http
    for path, body, param in [
        (GENERATE, {"prompt": "x", "partial_images": 1}, "partial_images"),
        ("/v1/jobs", {"prompt": "x", "stream": True}, "stream"),
    ]:
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    # The message used to say that 'n' must be 1, not 1.
    answer = http.post(GENERATE, json={"prompt": "x", "stream": True}, headers={"Accept": "image/png"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")
    job = service.client.submit("a cat")
    answer = http.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert http.get("/v1/jobs/unknown/events").status_code == 404


def test_disconnecting_from_a_stream_cancels_its_job(new_service: Callable[..., Service]) -> None:
    """Images that no client would read used to take rows from other jobs."""
    service = new_service(fake_step_ms=20.0)
    body = {"prompt": "a cat", "stream": True, "partial_images": 1, "num_inference_steps": 20000}
    with httpx.stream("POST", service.settings.base_url + GENERATE, json=body) as answer:
        job_id = answer.headers["x-job-id"]
        until(lambda: service.client.job(job_id)["progress"]["step"] > 2)
    until(lambda: service.client.job(job_id)["status"] == "canceled")


def test_events_are_replayed_on_another_gateway(new_service: Callable[..., Service], hold: Hold) -> None:
    """After a broken connection the load balancer picks another gateway: no event is missed or repeated."""
    service = new_service(fake_step_ms=10.0)
    other = replace(service.settings, port=free_port())
    gateway = start("gateway", other)
    try:
        job = service.client.submit(hold.prompt(step=30), **STEPS, partial_images=2)
        events = f"/v1/jobs/{job['id']}/events"
        with httpx.stream("GET", service.settings.base_url + events) as answer:
            following = sse(answer.iter_lines())
            heard = []
            while [each["event"] for each in heard].count("partial_image") < 2:
                heard.append(next(following))
        hold.release()
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


def test_a_late_follower_gets_the_final_event(service: Service) -> None:
    """A job that was never followed has no events; a silent stream would look like a hanging job."""
    job = service.client.submit("a cat")
    service.client.wait(job["id"])
    with httpx.stream("GET", f"{service.settings.base_url}/v1/jobs/{job['id']}/events") as answer:
        [end] = sse(answer.iter_lines())
    assert (end["event"], end["data"]["id"]) == ("succeeded", job["id"])


@pytest.mark.slow
def test_a_thousand_disconnected_followers_leave_nothing(new_service: Callable[..., Service]) -> None:
    """Each used to leave behind a socket and a task that waited for the next event."""
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


async def test_a_lost_lease_stores_no_preview(queue: JobQueue, leases: LeaseQueue) -> None:
    """Its preview would replace that of the current attempt."""
    await accept(queue, "a", partial_images=2)
    zombie = await take(leases)
    assert await leases.requeue(zombie) == "queued"
    await leases.store_preview(zombie, 0, 0, b"old")
    heir = await take(leases)
    await leases.store_preview(heir, 0, 1, b"new")
    keys = queue.keys
    assert not await queue.redis.exists(keys.preview_bytes("a", 0, 0))
    assert await queue.redis.ttl(keys.preview_bytes("a", 0, 1)) > 0


async def test_a_job_without_followers_has_no_events(queue: JobQueue, leases: LeaseQueue) -> None:
    """Ten writes a second for every job would be most of the queue's load."""
    await accept(queue, "a")
    lease = await take(leases)
    await leases.renew([LeaseRenewal(lease, True, 3)], extend=True)
    assert not await queue.redis.exists(queue.keys.events_stream("a"))


@given(steps=st.integers(1, 300), count=st.integers(0, 3))
def test_previews_come_early_and_in_order(steps: int, count: int) -> None:
    """The first preview comes within a third of the steps, if there are enough, and none is the finished image."""
    found = job_input(num_inference_steps=steps, partial_images=count).preview_steps
    assert list(found) == sorted(set(found)) and all(0 < step < steps for step in found)
    if steps > 6:
        assert len(found) == count
        assert not count or found[0] <= steps / 3 + 0.5
