"""Open event streams are limited, per API key and in all, and one event for many of them holds up nothing else."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.errors import RateLimited
from server.gateway.api_keys import hash_key
from server.gateway.lifespan import open_services
from server.gateway.responses.sse import Streams
from server.queue.events import MAX_READING
from server.queue.job_queue import JobQueue
from server.settings import Settings
from tests.server.harness import Service, accept, client_of, fluid, until, until_async

KEYS = {name: f"fl-{name}-key" for name in ("ann", "bob")}
API_KEYS = ";".join(f"{name} {hash_key(key)}" for name, key in KEYS.items())


def test_slots_are_counted_per_owner_and_in_all() -> None:
    streams = Streams(max_streams=3, max_key_streams=2)
    first, second = streams.open("ann"), streams.open("ann")
    with pytest.raises(RateLimited, match=r"'ann' has 2 open event streams.*FLUID_MAX_KEY_STREAMS"):
        streams.open("ann")
    third = streams.open("bob")
    with pytest.raises(RateLimited, match=r"3 event streams are open.*FLUID_MAX_STREAMS"):
        streams.open("bob")
    first.close()
    first.close()
    fourth = streams.open("bob")
    with pytest.raises(RateLimited):
        streams.open("ann")
    for slot in (second, third, fourth):
        slot.close()
    assert not streams._open
    anonymous = Streams(max_streams=9, max_key_streams=2)
    assert len([anonymous.open("") for _ in range(9)]) == 9, "without keys there are no owners to tell apart"


@pytest.mark.anyio
async def test_streams_of_one_key_are_refused_beyond_its_limit(new_service: Any) -> None:
    """1,500 streams of one tenant delayed every answer to others by 3 s for each event. A slot is free again as soon as
    its client has gone."""
    service = new_service(api_keys=API_KEYS, max_key_streams=3, max_streams=4, fake_step_ms=50.0)
    with client_of(service, KEYS["ann"]) as client:
        job = client.submit("a cat", num_inference_steps=2000)["id"]
    async with httpx.AsyncClient(base_url=service.settings.base_url) as http:
        ann, bob = ({"Authorization": f"Bearer {KEYS[name]}"} for name in ("ann", "bob"))

        def follow() -> httpx.Request:
            return http.build_request("GET", f"/v1/jobs/{job}/events", headers=ann)

        opened = [await http.send(follow(), stream=True) for _ in range(3)]
        assert [each.status_code for each in opened] == [200] * 3
        refused = await http.send(follow())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "FLUID_MAX_KEY_STREAMS" in refused.json()["error"]["message"] and refused.headers["retry-after"]
        generate = {"prompt": "a cat", "stream": True, "num_inference_steps": 2}
        also = await http.post("/v1/images/generations", json=generate, headers=ann)
        assert (also.status_code, also.json()["error"]["param"]) == (429, "stream")
        others = await http.post("/v1/images/generations", json=generate, headers=bob)
        assert others.status_code == 200 and b"image_generation.completed" in others.content

        async def unknown() -> bool:
            """The slot of the stream before comes back a moment after its last byte."""
            answer = await http.get("/v1/jobs/job_none/events", headers=bob)
            return answer.status_code == 404

        await until_async(unknown)
        again = await http.post("/v1/images/generations", json=generate, headers=bob)
        assert again.status_code == 200, "a refused or ended stream gives its slot back"

        report = await asyncio.to_thread(_doctor_line, service)
        assert "3 event streams" in report
        await opened[0].aclose()

        async def open_again() -> bool:
            answer = await http.send(follow(), stream=True)
            opened.append(answer)
            return answer.status_code == 200

        await until_async(open_again)
        for each in opened:
            await each.aclose()


def _doctor_line(service: Service) -> str:
    return until(lambda: next((line for line in fluid(service.settings, "doctor").stdout.splitlines()
                               if "ann: " in line and "3 event streams" in line), ""))  # fmt: skip


@pytest.mark.anyio
async def test_one_event_for_a_thousand_followers_lets_others_in(queue: JobQueue, settings: Settings) -> None:
    """All of them read at once, and /health/live waited for the last one."""
    async with open_services(replace(settings, max_streams=2000)) as services:
        job = await accept(queue, "job")
        await services.events.begin(job, "")
        reading = most = 0
        read = services.events._read

        async def counted(*args: Any) -> Any:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            try:
                return await read(*args)
            finally:
                reading -= 1

        services.events._read = counted  # type: ignore[method-assign]

        async def follow() -> list[str]:
            return [event.value async for event in services.events.follow(job) if event is not None]

        following = [asyncio.create_task(follow()) for _ in range(1000)]
        await until_async(_followers(services, 1000))
        await queue.cancel(job)
        found = await asyncio.gather(*following)
        assert all(values[-1] == "canceled" for values in found)
        assert 1 < most <= MAX_READING


def _followers(services: Any, count: int) -> Any:
    async def reached() -> bool:
        return bool(services.watcher.followers == count)

    return reached
