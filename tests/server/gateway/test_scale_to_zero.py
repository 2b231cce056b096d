"""What an autoscaler of workers reads (docker/helm): a model's waiting work, also while no worker of it runs."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx
import pytest

from tests.server.harness import Service, until

pytestmark = pytest.mark.service


def figures(service: Service) -> dict[str, float]:
    """{name: value} of the figures by model of the page of metrics."""
    text = httpx.get(f"{service.settings.base_url}/metrics").text
    found = re.findall(r'^fluid_model_queue_(\w+)\{model="fake"\} (\S+)$', text, flags=re.M)
    return {name: float(value) for name, value in found}


def test_work_for_no_worker_is_counted_until_one_has_done_it(new_service: Callable[..., Service]) -> None:
    """Without a series, an autoscaler could not tell an idle model from one that nobody has served."""
    service = new_service(workers=0)
    until(lambda: "no live worker" in service.client.ready()[1], what="the gateway")
    assert figures(service) == {}
    worker = service.add_worker()
    service.client.wait_ready(timeout_s=60)
    assert figures(service) == {"row_steps": 0, "oldest_age_seconds": 0}
    worker.terminate()
    assert worker.wait(timeout=60) == 0
    body = {"prompt": "x", "n": 2, "num_inference_steps": 5}
    job = httpx.post(f"{service.settings.base_url}/v1/jobs", json=body).json()["id"]
    assert figures(service)["row_steps"] == 10
    until(lambda: figures(service)["oldest_age_seconds"] > 0, what="the job's age")
    service.add_worker()
    url = f"{service.settings.base_url}/v1/jobs/{job}"
    until(lambda: httpx.get(url).json()["status"] == "succeeded", what="the job's end")
    assert figures(service) == {"row_steps": 0, "oldest_age_seconds": 0}


def test_a_request_after_the_last_worker_ends_in_time(new_service: Callable[..., Service]) -> None:
    """A gateway believes in a killed worker for 5 s: nothing answers the requests that it accepts meanwhile."""
    service = new_service(request_timeout_s=1.0)
    service.workers[0].kill()
    url = f"{service.settings.base_url}/v1/images/generations"
    late = httpx.post(url, json={"prompt": "a cat"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "Not ready after 1 s (FLUID_REQUEST_TIMEOUT_S); the job was canceled" in late.json()["error"]["message"]
    [job] = service.client._http.get("/v1/jobs").json()["data"]
    assert job["status"] == "canceled"
    until(lambda: httpx.post(url, json={"prompt": "a cat"}).status_code == 503, what="the loss")
