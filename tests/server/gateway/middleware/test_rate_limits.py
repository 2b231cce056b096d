"""Limits of one API key: requests per minute over all gateways, and jobs at the same time."""

import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import openai
import pytest

from server.cli.demo import free_port
from server.errors import ServiceError
from server.gateway.api_keys import hash_key
from server.jobs import JobError, JobState
from server.launcher import subprocesses
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.settings import Settings
from tests.server.harness import Service, client_of, job_input, start, status_of, take, until

pytestmark = pytest.mark.anyio
ALICE, BOB = "fl-alice", "fl-bob"


def test_requests_per_minute_are_counted_over_all_gateways(new_service: Callable[..., Service]) -> None:
    """Two replicas must not allow twice the limit. Reading is free, and every key has its own limit."""
    keys = f"alice {hash_key(ALICE)} rate_limit=3; bob {hash_key(BOB)}"
    service = new_service(api_keys=keys, rate_limit=50)
    twin_settings = _on_another_port(service.settings)
    twin = start("gateway", twin_settings)
    try:
        until(lambda: status_of(f"{twin_settings.base_url}/health/ready") == 200, what="the second gateway")
        urls = [service.settings.base_url, twin_settings.base_url]
        answers = [_generate(urls[i % 2], ALICE) for i in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["2", "1", "0", "0"]
        assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"3"}
        assert answers[-1].headers["x-ratelimit-reset-requests"].endswith("s")
        last = answers[-1]
        assert (
            last.json()["error"]["code"] == "rate_limit_exceeded" and last.json()["error"]["type"] == "rate_limit_error"
        )
        assert 1 <= int(last.headers["retry-after"]) <= 20
        assert 0 < int(last.headers["retry-after-ms"]) <= 20000
        headers = {"Authorization": f"Bearer {ALICE}"}
        assert all(httpx.get(f"{url}/v1/models", headers=headers).status_code == 200 for url in urls * 3)
        assert _generate(urls[0], BOB).headers["x-ratelimit-limit-requests"] == "50"
    finally:
        subprocesses.stop(twin, grace_s=10)


def _on_another_port(settings: Settings) -> Settings:
    return replace(settings, port=free_port())


def _generate(url: str, key: str) -> httpx.Response:
    body = {"prompt": "a cat", "quality": "low"}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/images/generations", json=body, headers=headers)


def test_the_openai_client_retries_after_a_rate_limit(new_service: Callable[..., Service]) -> None:
    """At two requests per second, the official client retries some of five in a row as Retry-After says, and none
    fails. Without retries it raises its RateLimitError."""
    keys = f"alice {hash_key(ALICE)} rate_limit=120; bob {hash_key(BOB)} rate_limit=2"
    service = new_service(api_keys=keys, fake_step_ms=0)
    base = f"{service.settings.base_url}/v1"
    with httpx.Client(base_url=service.settings.base_url, headers={"Authorization": f"Bearer {ALICE}"}) as http:
        while http.post("/v1/jobs", json={"prompt": "x"}).status_code != 429:  # use up this minute's requests
            pass
    with openai.OpenAI(base_url=base, api_key=BOB, max_retries=0) as client, pytest.raises(openai.RateLimitError):
        for _ in range(3):
            client.images.generate(prompt="a cat")
    with openai.OpenAI(base_url=base, api_key=ALICE, max_retries=5) as client:
        for _ in range(5):
            assert client.images.generate(prompt="a cat").data


@pytest.mark.parametrize("per_minute", [1, 2, 7, 60, 599, 99_999])
async def test_a_new_caller_has_exactly_the_limit(queue: JobQueue, per_minute: int) -> None:
    allowed, left, whole_s, next_s = await queue.run("rate_limit", {"caller": "alice", "per_minute": per_minute})
    assert (allowed, left) == (1, per_minute - 1)
    assert float(whole_s) == pytest.approx(60 / per_minute, abs=1e-5)
    assert (float(next_s) == 0) == (per_minute > 1)


async def test_the_limit_refills_continuously(queue: JobQueue) -> None:
    """600 per minute are ten per second: when all are used up, the next is a tenth of a second away, not a minute."""
    began = time.monotonic()
    for _ in range(600):
        await queue.run("rate_limit", {"caller": "alice", "per_minute": 600})
    _, left, whole_s, next_s = await queue.run("rate_limit", {"caller": "alice", "per_minute": 600})
    assert left <= 10 * (time.monotonic() - began) and float(next_s) <= 0.1 and float(whole_s) <= 60
    assert await queue.redis.pttl(queue.keys.rate_limit("alice")) <= 60_000, "an idle caller leaves no Redis key behind"


def test_jobs_at_the_same_time_are_limited_until_one_ends(new_service: Callable[..., Service]) -> None:
    service = new_service(workers=0, api_keys=f"alice {hash_key(ALICE)} max_jobs=2; bob {hash_key(BOB)}")
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200)
    with client_of(service, ALICE) as alice, client_of(service, BOB) as bob:
        worker = service.add_worker()
        service.client.wait_ready(timeout_s=60)
        subprocesses.stop(worker, grace_s=10)  # no worker is live, but the model is known
        jobs = [alice.submit("a cat") for _ in range(2)]
        with pytest.raises(ServiceError, match="2 jobs of 'alice' wait or run, the limit is 2") as caught:
            alice.submit("a cat")
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        bob.submit("a cat")
        alice.cancel(jobs[0]["id"])
        third = alice.submit("a cat")
        service.add_worker()
        assert alice.wait(third["id"])["status"] == "succeeded"
        assert alice.wait(jobs[1]["id"])["status"] == "succeeded"
        assert alice.submit("a cat")


async def test_the_count_of_open_jobs_returns_to_zero(queue: JobQueue, leases: LeaseQueue) -> None:
    """However a job ends. A count that stayed behind would never go away: its owner could queue less and less."""
    mine = replace(job_input(), owner="alice")
    for job_id in ("a", "b", "c"):
        await queue.enqueue(Submission(job_id, mine, "job", max_jobs=9))
    await queue.enqueue(Submission("a", mine, "job", max_jobs=9))  # known already
    await queue.enqueue(Submission("line", replace(mine, batch="batch_1"), "batch", max_jobs=9))
    open_jobs = queue.keys.open_jobs_hash
    assert await queue.redis.hgetall(open_jobs) == {"alice": "3", "alice batch fake": "1"}
    await queue.cancel("a")
    await queue.cancel("a")
    lease = await take(leases)
    await leases.finish(lease, JobState.FAILED, error=JobError("engine_error", "it broke"))
    assert await queue.redis.hgetall(open_jobs) == {"alice": "1", "alice batch fake": "1"}
    for job_id in ("b", "c", "line"):
        await queue.cancel(job_id)
    assert not await queue.redis.exists(open_jobs)
