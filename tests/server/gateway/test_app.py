"""Every route over HTTP, against a real gateway, queue and worker process."""

import base64
import hashlib
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from server.client import FluidClient
from server.errors import ServiceError
from server.images.codec import read_metadata
from server.settings import Settings
from tests.server.harness import Service, until

GENERATE = "/v1/images/generations"


@pytest.fixture
def http(service: Service) -> Any:
    with httpx.Client(base_url=service.settings.base_url) as client:
        yield client


def test_generate_responds_in_openais_format(http: httpx.Client) -> None:
    """The default is one PNG as base64, with the seed that reproduces it."""
    answer = http.post(GENERATE, json={"prompt": "a cat", "seed": 5})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["output_format"], body["size"], body["quality"]) == ("png", "32x32", "medium")
    assert [d["seed"] for d in body["data"]] == [5]
    assert set(body["metrics"]) == {"queue_time", "predict_time", "encode_time", "total_time", "batch_size", "kernels"}
    recipe = read_metadata(base64.b64decode(body["data"][0]["b64_json"]))
    assert recipe is not None
    fake_sha256 = hashlib.sha256(Settings().checkpoint.encode()).hexdigest()
    assert (recipe["prompt"], recipe["seed"], recipe["checkpoint_sha256"]) == ("a cat", 5, fake_sha256)


def test_image_i_uses_seed_plus_i(http: httpx.Client) -> None:
    """Image 2 of a request for three must equal the image that its own seed gives alone."""
    three = http.post(GENERATE, json={"prompt": "a cat", "n": 3, "seed": 10}).json()["data"]
    alone = http.post(GENERATE, json={"prompt": "a cat", "seed": 12}).json()["data"]
    assert [d["seed"] for d in three] == [10, 11, 12]
    assert three[2]["b64_json"] == alone[0]["b64_json"]
    assert three[0]["b64_json"] != alone[0]["b64_json"]


def test_more_images_than_rows(new_service: Callable[..., Service]) -> None:
    """A request with more images than fit one batch is spread over several, neither stuck nor cut short."""
    service = new_service(max_rows=2)
    images = service.client.generate("many", n=5, quality="low")
    assert len({p.data for p in images}) == 5
    assert images[0].metrics["batch_size"] == 2


def test_a_job_is_submitted_polled_and_fetched(http: httpx.Client, service: Service) -> None:
    """The asynchronous workflow, with the status codes that tell a running job from an ended one."""
    accepted = http.post("/v1/jobs", json={"prompt": "a cat", "n": 2, "quality": "low", "style": "x"})
    assert accepted.status_code == 202
    job = accepted.json()
    assert accepted.headers["location"] == f"/v1/jobs/{job['id']}" == job["urls"]["get"]
    assert job["warnings"] == ["'style' has no effect here."]
    done = service.client.wait(job["id"], timeout_s=60, poll_s=0.02)
    assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
    assert (done["status"], done["progress"]["fraction"], len(done["output"])) == ("succeeded", 1.0, 2)
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] < done["expires_at"]
    assert done["input"]["seed"] == done["output"][0]["seed"] == done["output"][1]["seed"] - 1
    missing = http.get(f"/v1/jobs/{job['id']}/images/2")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "image_not_found")


def test_a_job_says_that_it_answers_without_images(http: httpx.Client) -> None:
    """`response_format` was taken without effect: the links of a job need a key."""
    job = http.post("/v1/jobs", json={"prompt": "a cat", "response_format": "url"}).json()
    assert job["warnings"] == [
        "'response_format' has no effect on a job: download its images from the url of each output."
    ]


@pytest.mark.parametrize("query", ["purpose=vision", "order=asc"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_an_unknown_filter_lists_nothing(http: httpx.Client, path: str, query: str) -> None:
    """It listed everything: a program that deletes what it lists would have deleted all."""
    answer = http.get(f"{path}?{query}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == query.split("=")[0]


def test_cancel_a_running_job(http: httpx.Client, service: Service) -> None:
    """The rows are freed, the job ends as canceled, and repeating the call has no effect."""
    job = service.client.submit("slow", num_inference_steps=20000)
    until(lambda: service.client.job(job["id"])["progress"]["step"] > 0, what="the first step")
    assert http.get(f"/v1/jobs/{job['id']}").status_code == 202
    not_yet = http.get(f"/v1/jobs/{job['id']}/images/0")
    assert (not_yet.status_code, not_yet.headers["retry-after"]) == (404, "1")
    assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code in (200, 202)  # 200 if its worker was quick
    until(lambda: service.client.job(job["id"])["status"] == "canceled")
    assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    until(lambda: "fluid_jobs_inflight 0.0" in http.get("/metrics").text, what="the freed rows")


def test_a_client_that_disconnects_cancels_its_job(http: httpx.Client) -> None:
    """Otherwise impatient users keep workers busy with images without a receiver."""

    def count(series: str) -> float:
        line = next(x for x in http.get("/metrics").text.splitlines() if series in x)
        return float(line.split()[-1])

    accepted, canceled = 'fluid_jobs_submitted_total{kind="sync"}', 'outcome="canceled"'
    before = count(accepted), count(canceled)
    with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as connection:
        body = b'{"prompt": "slow", "num_inference_steps": 20000}'
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        until(lambda: count(accepted) == before[0] + 1, what="the job")
    until(lambda: count(canceled) == before[1] + 1, what="the cancellation")


def test_a_waiting_request_ends_when_its_job_is_canceled(http: httpx.Client, service: Service) -> None:
    """It must get a response at once instead of hanging until its timeout."""
    answers: list[httpx.Response] = []
    url = service.settings.base_url + GENERATE
    body = {"prompt": "slow", "num_inference_steps": 20000, "user": "hanging"}
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body)))
    thread.start()
    with redis.Redis.from_url(service.settings.redis_url, decode_responses=True) as client:
        pattern = f"{{{service.settings.namespace}}}:job:*"

        def find() -> str | None:
            for key in client.scan_iter(pattern):
                if '"user":"hanging"' in str(client.hget(key, "input")):
                    return str(client.hget(key, "id"))
            return None

        job_id = until(find)
    http.post(f"/v1/jobs/{job_id}/cancel")
    thread.join(timeout=60)
    assert answers[0].json()["error"]["code"] == "job_canceled"


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": "x", "sead": 1}, "sead"), ({"prompt": "x", "n": 0}, "n"), ({"n": 1}, "prompt")],
)
@pytest.mark.parametrize("route", [GENERATE, "/v1/jobs"])
def test_a_bad_parameter_is_a_400_that_names_it(
    http: httpx.Client, route: str, body: dict[str, Any], param: str
) -> None:
    """Errors have OpenAI's format on both routes, never FastAPI's `detail`."""
    answer = http.post(route, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert param in error["message"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'"x"', b"", b"\xff\xfe"])
def test_malformed_bodies_are_a_400(http: httpx.Client, content: bytes) -> None:
    """Malformed JSON must be a clear 400, never a 500."""
    answer = http.post(GENERATE, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/nope", 404, "job_not_found"),
        ("GET", "/v1/jobs/nope/images/0", 404, "job_not_found"),
        ("POST", "/v1/jobs/nope/cancel", 404, "job_not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_resources_are_a_404(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    """A job that never existed must not be reported in some default state."""
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_poison_prompt_fails_alone(service: Service) -> None:
    """An engine exception must fail the job that caused it, after all its attempts, and no job beside it."""
    neighbours = [service.client.submit("fine", num_inference_steps=200) for _ in range(3)]
    poison = service.client.submit("[raise]")
    admission = service.client.submit("[raise-admit]")
    for job in neighbours:
        assert service.client.wait(job["id"], timeout_s=60)["status"] == "succeeded"
    for job in (poison, admission):
        ended = service.client.wait(job["id"], timeout_s=60)
        assert (ended["status"], ended["attempt"], ended["error"]["code"]) == ("failed", 3, "engine_error")
    with pytest.raises(ServiceError, match="failed after 3") as caught:
        service.client.generate("[raise]")
    assert (caught.value.status, caught.value.code) == (500, "job_failed")


def test_an_impossible_request_fails_at_once_and_alone(service: Service) -> None:
    """A request that the engine rejects gets one attempt: more waste time, and a 5xx would make clients retry it."""
    neighbours = [service.client.submit("fine", quality="low") for _ in range(3)]
    rejected = service.client.submit("[impossible]", n=2)
    ended = service.client.wait(rejected["id"], timeout_s=60)
    assert (ended["status"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "impossible_request")
    assert "told that this is impossible" in ended["error"]["message"]
    for job in neighbours:
        assert service.client.wait(job["id"], timeout_s=60)["status"] == "succeeded"
    with pytest.raises(ServiceError, match="told that this is impossible") as caught:
        service.client.generate("[impossible]")
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


def test_models_describe_themselves(http: httpx.Client) -> None:
    """The playground builds its form from this."""
    [model] = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["ready"]) == ("fake", "model", True)
    for name in (
        "image_size",
        "presets",
        "limits",
        "styles",
        "vocabulary",
        "license",
        "conditions",
        "source",
        "checkpoint_sha256",
    ):
        assert name in model


def test_health_docs_and_playground(http: httpx.Client) -> None:
    """Probes and people open these first; the playground must not load anything from the internet."""
    assert http.get("/health/live").json() == {"status": "live"}
    assert http.get("/health/ready").json() == {"status": "ready", "models": {"fake": True}}
    for probe in ("live", "ready"):  # some send HEAD, which used to be a 405
        head = http.head(f"/health/{probe}")
        assert (head.status_code, head.content) == (200, b"")
    page = http.get("/").text
    assert "<form" in page
    assert "https://" not in page.replace("https://www.w3.org", "")
    paths = http.get("/openapi.json").json()["paths"]
    assert {GENERATE, "/v1/jobs", "/v1/jobs/{job_id}", "/v1/models"} <= set(paths)


def test_request_ids_are_kept_or_generated(http: httpx.Client) -> None:
    """One id connects client, gateway and log; a malformed one must not get into the log."""
    assert http.get("/health/live", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = http.get("/health/live", headers={"x-request-id": "a b;c"}).headers["x-request-id"]
    assert made.startswith("req_")


METRICS = """fluid_http_requests_total fluid_http_request_duration_seconds fluid_jobs_submitted_total
fluid_jobs_finished_total fluid_jobs_rejected_total fluid_queue_depth fluid_queue_oldest_age_seconds
fluid_jobs_inflight fluid_queue_wait_seconds fluid_job_latency_seconds fluid_stage_duration_seconds
fluid_batch_size fluid_images_total fluid_redeliveries_total fluid_worker_up fluid_worker_info fluid_model_info"""


def test_one_scrape_has_every_metric(http: httpx.Client) -> None:
    """Dashboards refer to these names; a rename would break them."""
    http.post(GENERATE, json={"prompt": "x"})
    http.post(GENERATE, json={"prompt": ""})
    until(lambda: 'fluid_images_total{model="fake"}' in http.get("/metrics").text, what="the worker's metrics")
    text = http.get("/metrics").text
    for name in METRICS.split():
        assert name in text, name
    assert 'route="/v1/images/generations"' in text
    assert re.search(r'fluid_worker_info\{device="cpu",kernels="fake",worker="[^"]+"\} 1.0', text)
    assert not re.search("job_[0-9a-f]{8}", text), "a job id became a label"


def test_a_service_without_workers(new_service: Callable[..., Service]) -> None:
    """Synchronous callers get a 503 at once, and readiness fails."""
    service = new_service(workers=0)
    until(lambda: "worker" in service.client.ready()[1], what="the gateway")
    with FluidClient(service.settings.base_url) as client, pytest.raises(ServiceError) as caught:
        client.generate("x")
    assert (caught.value.status, caught.value.code) == (503, "no_workers")
    answer = httpx.post(service.settings.base_url + GENERATE, json={"prompt": "x"})
    assert int(answer.headers["retry-after"]) > 0
    assert httpx.get(service.settings.base_url + "/v1/models").json()["data"] == []
