"""Batches: OpenAI's files and batches through the official client, restarts, cancel, and room for others."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import redis
from harness import Service, start, until
from hypothesis import given
from hypothesis import strategies as st

from server.batch_lines import MAX_LINES, LineError, parse_lines
from server.batches import WINDOW
from server.keys import Keys

URL = "/v1/images/generations"


def jsonl(*bodies: dict[str, Any]) -> bytes:
    lines = [{"custom_id": f"line-{i}", "method": "POST", "url": URL, "body": body} for i, body in enumerate(bodies)]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def begin(client: openai.OpenAI, data: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")  # type: ignore[arg-type]


def over(client: openai.OpenAI, batch_id: str) -> Any:
    done = ("completed", "failed", "cancelled", "expired")
    return until(lambda: (b := client.batches.retrieve(batch_id)).status in done and b, seconds=40)


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line["response"] for line in lines}


def test_a_batch_through_the_official_client(client: openai.OpenAI, service: Service) -> None:
    """Good lines, a poison one and a wrong one: each ends as it would alone, and none stops the others."""
    body = {"prompt": "a cat", "seed": 5, "num_inference_steps": 4}
    data = jsonl(*(body | {"seed": i} for i in range(100)), {"prompt": "[raise]"}, {"prompt": "x", "guidance": 3})
    batch = over(client, begin(client, data).id)
    assert batch.status == "completed" and batch.completed_at >= batch.created_at
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (102, 100, 2)
    good, bad = results(client, batch.output_file_id), results(client, batch.error_file_id)
    assert len(good) == 100 and good["line-7"]["status_code"] == 200
    alone = client.images.generate(prompt="a cat", extra_body={"seed": 7, "num_inference_steps": 4})
    assert alone.data is not None and good["line-7"]["body"]["data"][0]["b64_json"] == alone.data[0].b64_json
    assert (bad["line-100"]["status_code"], bad["line-101"]["status_code"]) == (500, 400)
    assert bad["line-101"]["body"]["error"]["param"] == "guidance"
    assert batch.id in [each.id for each in client.batches.list()]
    assert service.client.job(f"{batch.id}_0")["input"]["priority"] == "low"


def test_files_are_listed_read_and_deleted(client: openai.OpenAI) -> None:
    """What was uploaded can be had back, and is gone when deleted."""
    data = jsonl({"prompt": "a cat"})
    file = client.files.create(file=("my prompts.jsonl", data), purpose="batch")
    assert (file.filename, file.bytes, client.files.content(file.id).content) == ("my prompts.jsonl", len(data), data)
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        begin_with = "file-out-batch_none"
        client.files.content(begin_with)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x", b""), purpose="batch")
    assert caught.value.param == "file"


def test_a_file_that_is_no_batch_fails_whole(client: openai.OpenAI) -> None:
    """The first wrong line is named, and nothing is drawn."""
    batch = over(client, begin(client, jsonl({"prompt": "x"}) + b"\nnot json").id)
    assert batch.status == "failed" and batch.errors is not None
    [error] = batch.errors.data
    assert (error.line, error.code) == (2, "invalid_json_line")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe", "invalid_encoding"),
        (b" \n", "empty_file"),
        (b"[]", "invalid_line"),
        (b'{"body": {}}', "invalid_custom_id"),
        (b'{"custom_id": "a", "body": {}, "url": "/v1/chat"}', "invalid_url"),
        (jsonl({}) + b"\n" + jsonl({}), "duplicate_custom_id"),
        (b"x\n" * (MAX_LINES + 1), "too_many_lines"),
    ],
)
def test_wrong_files_say_why(data: bytes, code: str) -> None:
    """A batch of fifty thousand that fails without a reason is a day lost."""
    with pytest.raises(LineError) as caught:
        parse_lines(data)
    assert caught.value.code == code


@given(data=st.binary(max_size=200))
def test_any_bytes_are_lines_or_refused(data: bytes) -> None:
    """Never anything else."""
    try:
        assert parse_lines(data)
    except LineError as error:
        assert error.code


def test_a_batch_survives_its_gateway_and_leaves_room(new_service: Callable[..., Service]) -> None:
    """SIGKILL in the middle of a turn: another gateway goes on, every line is drawn once, and meanwhile others do not
    wait behind a thousand lines."""
    service = new_service(fake_step_ms=10.0, max_rows=4, max_queue=WINDOW + 10)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=5) as client:
        batch = begin(client, jsonl(*({"prompt": "a cat", "seed": i, "num_inference_steps": 8} for i in range(300))))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 20, seconds=30)
        service.gateway.kill()
        service.gateway.wait(timeout=10)
        service.gateway = start("gateway", service.settings)
        service.client.wait_ready(timeout_s=30)
        metrics = service.client.generate("in between", quality="low")[0].metrics
        counts = client.batches.retrieve(batch.id).request_counts
        assert metrics["queue_time"] < 5 and counts.completed < 300  # it overtook what was left
        done = over(client, batch.id)
        assert (done.request_counts.completed, len(results(client, done.output_file_id))) == (300, 300)
    text = service.client._call("GET", "/metrics").text
    assert 'fluid_jobs_submitted_total{kind="batch"} 300.0' in text


def test_a_batch_waits_for_the_first_worker(new_service: Callable[..., Service]) -> None:
    """Sent before any worker had introduced its model, every line was refused for good with "no worker"."""
    service = new_service(workers=0)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=5) as client:
        batch = until(lambda: _begun(client, jsonl({"prompt": "a cat"}, {"prompt": "a dog"})))
        until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        with redis.Redis.from_url(service.settings.redis_url) as valkey:
            turns = Keys(service.settings.namespace).batches_zset
            for _ in range(3):
                due_at = valkey.zscore(turns, batch.id)
                until(lambda due_at=due_at: valkey.zscore(turns, batch.id) != due_at, what="another turn")  # type: ignore[misc]
        service.add_worker()
        done = over(client, batch.id)
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 0)


def _begun(client: openai.OpenAI, data: bytes) -> Any:
    """None while the gateway is starting."""
    try:
        return begin(client, data)
    except openai.APIConnectionError:
        return None


def test_a_canceled_batch_keeps_what_was_drawn(new_service: Callable[..., Service]) -> None:
    """An hour's work is not thrown away because the rest is not wanted."""
    service = new_service(fake_step_ms=10.0, max_rows=2)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused") as client:
        batch = begin(client, jsonl(*({"prompt": "a cat", "num_inference_steps": 20} for i in range(200))))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 4, seconds=30)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = over(client, batch.id)
        counts = done.request_counts
        assert done.status == "cancelled" and 4 < counts.completed < 200
        assert len(results(client, done.output_file_id)) == counts.completed
    until(lambda: "fluid_jobs_inflight 0.0" in service.client._call("GET", "/metrics").text)
