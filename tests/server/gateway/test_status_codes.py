"""Status codes that depend on nothing but the request: 202 for a new job, and HEAD wherever there is GET."""

from collections.abc import Iterator

import httpx
import pytest

from server.gateway.app import create_app
from server.queue.job_queue import Accepted, JobQueue, Submission
from server.settings import Settings
from tests.server.harness import Service
from tests.server.inprocess import served


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.settings.base_url) as client:
        yield client


@pytest.mark.anyio
async def test_a_new_job_is_a_202_even_if_it_has_ended(
    settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ended before its record was read was a 200, once in 1,000 submissions."""
    enqueue = JobQueue.enqueue

    async def enqueue_and_end(self: JobQueue, submission: Submission) -> Accepted:
        accepted = await enqueue(self, submission)
        await self.cancel(accepted.job_id)
        return accepted

    monkeypatch.setattr(JobQueue, "enqueue", enqueue_and_end)
    with served(create_app(settings)) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            body = {"prompt": "x"}
            assert (await http.post("/v1/jobs", json=body)).status_code == 202
            assert (await http.put("/v1/jobs/my-own-id", json=body)).status_code == 202
            assert (await http.put("/v1/jobs/my-own-id", json=body)).status_code == 200  # it had ended before
            waited = await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=5"})
            assert waited.status_code == 200


def test_head_is_answered_on_every_get_route(http: httpx.Client, service: Service) -> None:
    """It was a 405 on /, /metrics and /v1/models. A stream of events must not run on without a reader."""
    job = service.client.submit("slow", num_inference_steps=20000)["id"]
    contract = http.get("/openapi.json").json()
    assert not [path for path, methods in contract["paths"].items() if "head" in methods]
    for path in ["/", "/docs", "/openapi.json", *(path for path, m in contract["paths"].items() if "get" in m)]:
        url = path.replace("{job_id}", job).replace("{model_id}", "fake").replace("{index}", "0")
        head = http.head(url, timeout=20)  # shorter than the job's 40 s
        assert (head.content, head.status_code != 405) == (b"", True), url
        if not path.endswith(("/events", "/metrics")):
            got = http.get(url)
            assert head.status_code == got.status_code, url
            assert head.headers.get("content-type") == got.headers.get("content-type"), url
    assert http.head("/v1/images/generations").status_code == 405
    assert http.head("/nowhere").status_code == 404
    http.post(f"/v1/jobs/{job}/cancel")
