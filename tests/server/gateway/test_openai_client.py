"""The official openai client, unmodified."""

import base64
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from tests.server.harness import Hold, Service


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_generate(client: openai.OpenAI) -> None:
    """Existing code works with another base_url; our own parameters go through extra_body."""
    answer = client.images.generate(
        model="fake", prompt="a cat", n=2, size="32x32", extra_body={"seed": 4, "num_inference_steps": 3}
    )
    assert answer.data is not None
    assert [base64.b64decode(d.b64_json or "")[:4] for d in answer.data] == [b"\x89PNG"] * 2
    assert [d.model_extra and d.model_extra["seed"] for d in answer.data] == [4, 5]


def test_errors_become_the_clients_exceptions(client: openai.OpenAI) -> None:
    """BadRequestError has `param` only if the body has exactly OpenAI's format."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", extra_body={"guidance": 3})
    assert caught.value.param == "guidance"
    assert "guidance_scale" in caught.value.message
    with pytest.raises(openai.InternalServerError) as failed:
        client.images.generate(prompt="[raise]")
    assert failed.value.code == "job_failed"


@pytest.mark.parametrize(
    ("prompt", "extra", "code"),
    [
        ("[raise]", {"user": "fails"}, "job_failed"),
        ("slow", {"user": "late", "num_inference_steps": 20000, "deadline_ms": 100}, "deadline_exceeded"),
    ],
)
def test_a_final_failure_is_not_retried(service: Service, prompt: str, extra: dict[str, object], code: str) -> None:
    """The client retries a 5xx twice, so one call that cannot succeed used to create three failed jobs."""
    with (
        openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused") as client,
        pytest.raises(openai.InternalServerError) as failed,
    ):
        client.images.generate(prompt=prompt, extra_body=extra)
    assert (failed.value.code, failed.value.response.headers["x-should-retry"]) == (code, "false")
    jobs = httpx.get(f"{service.settings.base_url}/v1/jobs?limit=100").json()["data"]
    assert len([job for job in jobs if job["input"]["user"] == extra["user"]]) == 1


def test_a_timeout_with_a_key_is_retried(new_service: Callable[..., Service], hold: Hold) -> None:
    """After a 504 the job continues, and the client's retry with the same key gets its image."""
    service = new_service(request_timeout_s=1.0)
    seen: list[int] = []

    def receive(response: httpx.Response) -> None:
        seen.append(response.status_code)
        hold.release()

    http = httpx.Client(event_hooks={"response": [receive]})
    base_url = f"{service.settings.base_url}/v1"
    with openai.OpenAI(base_url=base_url, api_key="unused", http_client=http, max_retries=5) as client:
        answer = client.images.generate(prompt=hold.prompt(), extra_headers={"Idempotency-Key": "order-1"})
    assert (seen[0], seen[-1]) == (504, 200)
    assert answer.data is not None and answer.data[0].b64_json
    assert len(httpx.get(f"{service.settings.base_url}/v1/jobs").json()["data"]) == 1


def test_models(client: openai.OpenAI) -> None:
    """Many tools call models.list first."""
    assert [m.id for m in client.models.list()] == ["fake"]


def test_one_model(client: openai.OpenAI) -> None:
    """Tools check a configured name with models.retrieve, which used to be a 404 for lack of a route."""
    model = client.models.retrieve("fake")
    assert (model.id, model.object) == ("fake", "model")
    assert [model] == list(client.models.list())
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("dall-e-3")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert "Served: fake" in unknown.value.message
