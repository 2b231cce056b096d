"""API keys: which requests are authenticated, which jobs and files a caller sees, and how the key file is read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.client import FluidClient
from server.errors import ServiceError
from server.gateway.api_keys import hash_key
from tests.server.harness import Hold, Service, client_of, status_of, until

pytestmark = pytest.mark.anyio
ALICE, BOB, OFF = "fl-alice", "fl-bob", "fl-off"
LINES = f"alice {hash_key(ALICE)} # the first\n\nbob {hash_key(BOB)}\nold-laptop {hash_key(OFF)} disabled\n"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(LINES)
    return file


@pytest.fixture
def service(new_service: Callable[..., Service], key_file: Path) -> Service:
    made = new_service(workers=0, api_keys_file=str(key_file))
    made.add_worker()
    made.client.wait_ready(timeout_s=60)  # by routes that need no key
    return made


@pytest.fixture
def alice(service: Service) -> Iterator[FluidClient]:
    with client_of(service, ALICE) as client:
        yield client


@pytest.fixture
def bob(service: Service) -> Iterator[FluidClient]:
    with client_of(service, BOB) as client:
        yield client


# --- authentication ----------------------------------------------------------------------------------------


def test_requests_without_a_valid_key_are_rejected(service: Service) -> None:
    url = service.settings.base_url
    for authorization, status, code in (
        (None, 401, "invalid_api_key"),
        ("Bearer nobody's", 401, "invalid_api_key"),
        ("Bearer", 401, "invalid_api_key"),
        (f"Basic {ALICE}", 401, "invalid_api_key"),
        (f"Bearer {OFF}", 403, "key_disabled"),
    ):
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs/x/images/0"),
            ("GET", "/v1/no"),
        ):
            answer = httpx.request(method, url + path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (authorization, path)
            assert answer.headers["x-request-id"]
            assert ("www-authenticate" in answer.headers) == (status == 401)
    refused = httpx.get(url + "/metrics").text
    assert 'fluid_jobs_rejected_total{reason="invalid_api_key"} 4.0' in refused
    for path in ("/", "/health/live", "/health/ready", "/metrics", "/openapi.json"):
        assert httpx.get(url + path).status_code == 200, path


def test_metrics_can_require_a_key(new_service: Callable[..., Service]) -> None:
    service = new_service(workers=0, api_keys=f"prometheus {hash_key(ALICE)}", metrics_access="key")
    url = service.settings.base_url
    until(lambda: status_of(f"{url}/health/live") == 200, what="the gateway")
    assert status_of(f"{url}/metrics") == 401
    assert httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {ALICE}"}).status_code == 200


def test_the_openai_client_raises_its_own_errors(service: Service) -> None:
    base = f"{service.settings.base_url}/v1"
    with openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.images.generate(prompt="a cat")
        assert caught.value.code == "invalid_api_key"
    with (
        openai.OpenAI(base_url=base, api_key=OFF, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=base, api_key=ALICE, max_retries=0) as client:
        assert client.images.generate(prompt="a cat").data
        file = client.files.create(file=("b.jsonl", b"{}"), purpose="batch")
    with openai.OpenAI(base_url=base, api_key=BOB, max_retries=0) as client, pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_large_upload_with_a_wrong_key_gets_the_401(service: Service) -> None:
    """The response is sent before the file has arrived; the client must see it, and not a broken connection."""
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="wrong", max_retries=0) as client:
        for _ in range(3):
            with pytest.raises(openai.AuthenticationError):
                client.files.create(file=("b.jsonl", b"x" * (20 << 20)), purpose="batch")


def test_the_highest_priority_is_granted_key_by_key(new_service: Callable[..., Service]) -> None:
    """Any key could flood the class that goes before all others: another tenant's job took 61 s instead of 1."""
    service = new_service(api_keys=f"alice {hash_key(ALICE)} max_priority=high; bob {hash_key(BOB)}")
    with client_of(service, ALICE) as alice, client_of(service, BOB) as bob:
        assert alice.submit("a cat", priority="high")
        with pytest.raises(ServiceError, match="max_priority=high") as caught:
            bob.submit("a cat", priority="high")
        assert (caught.value.status, caught.value.param) == (400, "priority")
        assert bob.submit("a cat", priority="normal") and bob.submit("a cat", priority="low")


def test_the_client_reads_its_key_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(service, None) as client, pytest.raises(ServiceError, match="401"):
        client.models()
    monkeypatch.setenv("FLUID_API_KEY", ALICE)
    with client_of(service, None) as client:
        assert client.generate("a cat", quality="low")


# --- ownership -----------------------------------------------------------------------------------------


def test_jobs_of_other_callers_are_unknown(service: Service, alice: FluidClient, bob: FluidClient, hold: Hold) -> None:
    job = alice.submit(hold.prompt(), partial_images=1)  # a preview that is not stored before the job's end is dropped
    home = f"/v1/jobs/{job['id']}"
    until(lambda: status_of(f"{service.settings.base_url}{home}/images/0/previews/0", ALICE) == 200, what="a preview")
    hold.release()
    alice.wait(job["id"])
    paths = (home, f"{home}/events", f"{home}/images/0", f"{home}/images/0/previews/0")
    with httpx.Client(base_url=service.settings.base_url) as http:
        for key, expected in ((ALICE, 200), (BOB, 404)):
            headers = {"Authorization": f"Bearer {key}"}
            assert {path: http.get(path, headers=headers).status_code for path in paths} == dict.fromkeys(
                paths, expected
            )
            assert http.post(f"{home}/cancel", headers=headers).status_code == expected
            ids = [each["id"] for each in http.get("/v1/jobs", headers=headers).json()["data"]]
            assert (job["id"] in ids) == (key == ALICE)
            unknown = http.get("/v1/jobs/job_none", headers=headers).json()["error"]["message"]
        mine = http.get(home, headers={"Authorization": f"Bearer {BOB}"}).json()["error"]["message"]
        assert mine == unknown.replace("job_none", job["id"]), "the answer tells that there is such a job"


def test_a_cancel_by_another_caller_changes_nothing(new_service: Callable[..., Service], key_file: Path) -> None:
    service = new_service(workers=0, api_keys_file=str(key_file))
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200)
    with client_of(service, ALICE) as alice, client_of(service, BOB) as bob:
        service.add_worker()
        service.client.wait_ready(timeout_s=60)
        job = alice.submit("a cat", num_inference_steps=64, n=10)
        with pytest.raises(ServiceError, match="404"):
            bob.cancel(job["id"])
        assert alice.job(job["id"])["status"] != "canceled"
        alice.cancel(job["id"])


def test_idempotency_keys_of_two_callers_are_separate(service: Service) -> None:
    """The same Idempotency-Key from two owners is two jobs, or one caller could read the other's images."""
    ids = set()
    for key in (ALICE, BOB):
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "monday"}
        body = {"prompt": "a cat", "quality": "low"}
        answer = httpx.post(f"{service.settings.base_url}/v1/jobs", json=body, headers=headers)
        ids.add(answer.json()["id"])
    assert len(ids) == 2


def test_batches_and_their_results_belong_to_one_caller(service: Service) -> None:
    base = f"{service.settings.base_url}/v1"
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}'
    with (
        openai.OpenAI(base_url=base, api_key=ALICE, max_retries=0) as alice,
        openai.OpenAI(base_url=base, api_key=BOB, max_retries=0) as bob,
    ):
        file = alice.files.create(file=("b.jsonl", line), purpose="batch")
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")  # type: ignore[arg-type]
        batch = alice.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")  # type: ignore[arg-type]
        done = until(lambda: (b := alice.batches.retrieve(batch.id)).status == "completed" and b)
        assert done.output_file_id and b'"custom_id":"a"' in alice.files.content(done.output_file_id).content
        assert not bob.batches.list().data and not bob.files.list().data
        for read in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.content(str(done.output_file_id)),
            lambda: bob.files.delete(file.id),
        ):
            with pytest.raises(openai.NotFoundError):
                read()
