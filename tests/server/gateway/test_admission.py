"""Idempotent submission by key and by id, waiting with Prefer, and paginated lists of jobs."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis

from server.queue.keys import Keys
from tests.server.harness import Hold, Service, until

GENERATE = "/v1/images/generations"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as made:
        yield made


def status_and_code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_repeated_key_is_the_same_job(http: httpx.Client) -> None:
    """A retry after a lost response used to generate, and charge for, the images twice."""
    headers = {"Idempotency-Key": "order-1"}
    one = http.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers).json()
    other = http.post("/v1/jobs", json={"prompt": "a cat"}, headers=headers).json()
    assert (one["id"], one["input"]["seed"]) == (other["id"], other["input"]["seed"])
    other_body = http.post("/v1/jobs", json={"prompt": "a dog"}, headers=headers)
    assert status_and_code(other_body) == (422, "idempotency_key_reused")
    generated = http.post(GENERATE, json={"prompt": "a cat", "response_format": "url"}, headers=headers).json()
    assert generated["job_id"] == one["id"]
    bad = http.post("/v1/jobs", json={"prompt": "a cat"}, headers={"Idempotency-Key": "a b"})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_a_request_with_a_key_survives_its_client(new_service: Callable[..., Service], hold: Hold) -> None:
    """After a disconnect the job continues, and retries with the key get its images instead of a second job."""
    service = new_service()
    body, headers = {"prompt": hold.prompt()}, {"Idempotency-Key": "k"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(service.settings.base_url + GENERATE, json=body, headers=headers, timeout=0.5)
    hold.release()
    answers: list[dict[str, Any]] = []

    def retry() -> None:
        answers.append(httpx.post(service.settings.base_url + GENERATE, json=body, headers=headers).json())

    both = [threading.Thread(target=retry) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert answers[0]["job_id"] == answers[1]["job_id"] and answers[0]["data"] == answers[1]["data"]
    text = service.client._call("GET", "/metrics").text
    assert 'fluid_jobs_submitted_total{kind="sync"} 1.0' in text


def test_put_is_safe_to_repeat(http: httpx.Client) -> None:
    """The caller chooses the id; a second PUT with another body must not change the first job."""
    first = http.put("/v1/jobs/my-own-id-1", json={"prompt": "a cat"})
    assert (first.status_code, first.headers["location"]) == (202, "/v1/jobs/my-own-id-1")
    assert http.put("/v1/jobs/my-own-id-1", json={"prompt": "a cat"}).json()["id"] == "my-own-id-1"
    assert status_and_code(http.put("/v1/jobs/my-own-id-1", json={"prompt": "x"})) == (422, "idempotency_key_reused")
    assert http.put("/v1/jobs/a:b:c:d:e", json={"prompt": "x"}).json()["error"]["param"] == "job_id"


@pytest.mark.parametrize("job_id", ["batch_0123456789abcdef_1", "job_0123456789abcdef", "replay_01234567"])
def test_ids_that_the_service_gives_cannot_be_chosen(http: httpx.Client, job_id: str) -> None:
    """A tenant could put jobs under the predictable ids of another's batch, whose lines then failed with 422."""
    response = http.put(f"/v1/jobs/{job_id}", json={"prompt": "a cat"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "job_id")
    assert job_id.split("_")[0] in response.json()["error"]["message"]


def test_prefer_wait_delays_the_response(new_service: Callable[..., Service], hold: Hold) -> None:
    """It spares callers from polling for a job that takes half a second."""
    service = new_service(fake_step_ms=10.0)
    http = service.client._http
    body = {"prompt": "a cat", "num_inference_steps": 30}
    done = http.post("/v1/jobs", json=body, headers={"Prefer": "respond-async, wait=60"})
    assert (done.status_code, done.json()["status"]) == (200, "succeeded")
    slow = http.post("/v1/jobs", json={"prompt": hold.prompt()}, headers={"Prefer": "wait=0"})
    assert slow.status_code == 202
    hold.release()
    ended = http.get(f"/v1/jobs/{slow.json()['id']}", headers={"Prefer": "wait"})
    assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")


def test_listing_jobs_is_paginated(new_service: Callable[..., Service]) -> None:
    """The list finds jobs whose id was lost; filters and cursors are checked, and expired jobs leave it."""
    service = new_service()
    http = service.client._http
    ids = [service.client.submit("[raise]" if i == 2 else "a cat", quality="low")["id"] for i in range(5)]
    for job_id in ids:
        service.client.wait(job_id)
    pages, after = [], {}
    while True:
        page = http.get("/v1/jobs", params={"limit": 2} | after).json()
        pages.append([job["id"] for job in page["data"]])
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert pages == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    failed = http.get("/v1/jobs", params={"status": "failed"}).json()
    assert [job["id"] for job in failed["data"]] == [ids[2]] and not failed["has_more"]
    for params, param in [({"limit": 0}, "limit"), ({"after": "x"}, "after"), ({"status": "dead"}, "status")]:
        answer = http.get("/v1/jobs", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), params
    keys = Keys(service.settings.namespace)
    with redis.Redis.from_url(service.settings.redis_url) as valkey:
        for job_id in ids:
            valkey.pexpire(keys.job_hash(job_id), 1)
    until(lambda: http.get("/v1/jobs").json()["data"] == [], what="the jobs to expire from the list")


@pytest.mark.parametrize("cache_s", [0, 60])
def test_a_key_finds_its_images_without_a_worker(new_service: Callable[..., Service], hold: Hold, cache_s: int) -> None:
    """It was a 503 no_workers, although record and images were there, and the 504 had advised to repeat the key. A job
    that has not ended was waited for, as if somebody worked on it."""
    service = new_service(result_cache_s=cache_s)
    url, body = service.settings.base_url + GENERATE, {"prompt": "a cat", "seed": 1}
    headers = {"Idempotency-Key": "k"}
    first = httpx.post(url, json=body, headers=headers)
    held, held_key = {"prompt": hold.prompt(), "seed": 1}, {"Idempotency-Key": "held"}
    job = httpx.post(service.settings.base_url + "/v1/jobs", json=held, headers=held_key).json()
    hold.reached(service.client, job["id"])
    service.workers[0].kill()
    service.workers[0].wait(timeout=60)
    until(lambda: not service.client.ready()[0], what="the gateway to miss the worker")
    again = httpx.post(url, json=body, headers=headers)
    assert again.status_code == 200, again.text
    assert again.json()["data"] == first.json()["data"]
    new = httpx.post(url, json=body | {"seed": 2}, headers={"Idempotency-Key": "other"})
    assert status_and_code(new) == (503, "no_workers")
    assert status_and_code(httpx.post(url, json=held, headers=held_key)) == (503, "no_workers")


def test_used_up_memory_keeps_its_own_pause(new_service: Callable[..., Service]) -> None:
    """Retry-After followed from the queue, which was empty: clients came back each second for memory of an hour."""
    service = new_service(max_mib=1)
    url, body = service.settings.base_url + "/v1/jobs", {"prompt": "a cat", "n": 10}
    while (answer := httpx.post(url, json=body)).is_success:
        pass
    assert answer.status_code == 429 and "FLUID_MAX_MIB" in answer.text, answer.text
    assert answer.headers["retry-after"] == "60"
