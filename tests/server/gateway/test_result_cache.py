"""FLUID_RESULT_CACHE_S over HTTP: an equal request gets the images of the first one, without a worker."""

import base64
from collections.abc import Callable

import httpx
import pytest
import redis

from server.gateway.api_keys import hash_key
from server.gateway.responses.result_cache import request_hash
from server.jobs import Edit
from server.launcher.embedded_valkey import EmbeddedValkey
from tests.server.harness import Service, job_input, until

ANN, BOB = "fl-ann-key", "fl-bob-key"
BODY = {"prompt": "a cat", "seed": 4, "n": 2}


def test_what_decides_the_image_is_in_the_key() -> None:
    same = {request_hash(job_input(**changes)) for changes in (
        {}, {"priority": "low"}, {"deadline_ms": 5}, {"partial_images": 2}, {"owner": "ann"},
    )}  # fmt: skip
    edits = [Edit("job_1", "a"), Edit("job_1", "b"), Edit("job_1", "a", feather=2), Edit("job_1", "a", kept_tokens=3)]
    others = [
        {"seed": 8}, {"n": 2}, {"prompt": "x"}, {"output_format": "webp"}, {"quality": "high"}, {"user": "u"},
        {"negative_prompt": "x"}, {"background": "transparent"},
        {"temperature": 0.5}, {"model": "other"}, *({"edit": edit} for edit in edits),
    ]  # fmt: skip
    hashes = [request_hash(job_input(**changes)) for changes in others]  # type: ignore[arg-type]
    assert len(same) == 1 and len(same | set(hashes)) == 1 + len(others)
    assert request_hash(job_input(edit=Edit("job_1", "a"))) == request_hash(job_input(edit=Edit("job_2", "a")))


@pytest.fixture
def service(new_service: Callable[..., Service]) -> Service:
    return new_service(result_cache_s=600, api_keys=f"ann {hash_key(ANN)};bob {hash_key(BOB)}")


def post(service: Service, body: dict[str, object], key: str = ANN, route: str = "images/generations", **headers: str):  # type: ignore[no-untyped-def]
    sent = {"Authorization": f"Bearer {key}"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx.post(f"{service.settings.base_url}/v1/{route}", json=body, headers=sent)


def stop_workers(service: Service) -> None:
    """Stop the workers, and wait until the gateway's cached view has none: a request before that would wait for one."""
    for worker in service.workers:
        worker.terminate()
        worker.wait()
    ready = f"{service.settings.base_url}/health/ready"
    until(lambda: httpx.get(ready).status_code == 503, what="a service without workers")
    assert post(service, BODY | {"seed": 5}).status_code == 503


def test_an_image_that_is_gone_is_generated_again(service: Service, valkey: EmbeddedValkey) -> None:
    """The cache answered with a job whose image was gone, a 410 for each equal request, while workers were idle."""
    first = post(service, BODY, Idempotency_Key="a")
    assert post(service, BODY).headers["x-cache"] == "hit"
    with redis.Redis.from_url(valkey.url) as client:
        for name in client.scan_iter(f"*{first.json()['job_id']}*"):
            if client.type(name) == b"string" and client.strlen(name) > 100:
                client.delete(name)
    again, repeated = [post(service, BODY, Idempotency_Key="c") for _ in range(2)]  # the second was a 410 for a day
    assert (again.status_code, again.headers["x-cache"]) == (200, "miss")
    assert (repeated.status_code, repeated.json()["job_id"]) == (200, again.json()["job_id"])
    assert [image["b64_json"] for image in again.json()["data"]] == [i["b64_json"] for i in first.json()["data"]]


def test_a_repeated_request_finds_its_job_without_a_worker(service: Service) -> None:
    """The retry of a cached answer, by its Idempotency-Key, was a 503."""
    job_id = post(service, BODY).json()["job_id"]
    stop_workers(service)
    answers = [post(service, BODY, Idempotency_Key="b") for _ in range(2)]
    assert [(each.status_code, each.json()["job_id"]) for each in answers] == [(200, job_id)] * 2


def test_an_equal_request_needs_no_worker(service: Service) -> None:
    first = post(service, BODY | {"partial_images": 2, "stream": True}).text
    job_id = first.partition('"job_id":"')[2].partition('"')[0]
    images = [part.partition('"b64_json":"')[2].partition('"')[0] for part in first.split("event: ")[-2:]]
    assert post(service, {"prompt": "a cat"}).headers.get("x-cache") is None, "no seed"
    other = post(service, BODY, Cache_Control="no-cache")
    assert other.headers.get("x-cache") is None and other.json()["job_id"] != job_id
    assert post(service, BODY, key=BOB).headers["x-cache"] == "miss"
    stop_workers(service)
    found = post(service, BODY | {"quality": "medium", "deadline_ms": 9000})
    assert (found.status_code, found.headers["x-cache"], found.json()["job_id"]) == (200, "hit", job_id)
    assert [image["b64_json"] for image in found.json()["data"]] == images
    assert "server-timing" not in found.headers
    link = post(service, BODY | {"response_format": "url"}).json()["data"][1]["url"]
    assert base64.b64encode(httpx.get(link).content).decode() == images[1]
    events = post(service, BODY | {"stream": True, "partial_images": 2})
    assert events.headers["x-cache"] == "hit"
    assert events.text.count("event: ") == events.text.count("image_generation.completed\n") == 2
    job = post(service, BODY, route="jobs")
    assert (job.status_code, job.json()["id"], job.headers["x-cache"]) == (200, job_id, "hit")
    metrics = httpx.get(f"{service.settings.base_url}/metrics").text
    assert 'fluid_result_cache_requests_total{outcome="hit"} 4.0' in metrics
    assert 'fluid_jobs_submitted_total{kind="job"} 0.0' in metrics
