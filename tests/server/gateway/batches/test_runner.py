"""Batches from upload to results: the official client, restarts, cancellation, expiry, and fairness to others."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import redis

from server.batch_format import Line
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import Batch
from server.gateway.batches.runner import MAX_UNFINISHED_JOBS, BatchRunner
from server.gateway.batches.store import BatchStore
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.lease_queue import RESULT_EXTRA_S
from tests.server.harness import Hold, Service, fluid, start, until

URL = "/v1/images/generations"


def jsonl(*bodies: dict[str, Any]) -> bytes:
    lines = [{"custom_id": f"line-{i}", "method": "POST", "url": URL, "body": body} for i, body in enumerate(bodies)]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def create(client: openai.OpenAI, data: bytes) -> Any:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")  # type: ignore[arg-type]


def wait_until_over(client: openai.OpenAI, batch_id: str) -> Any:
    done = ("completed", "failed", "cancelled", "expired")
    return until(lambda: (b := client.batches.retrieve(batch_id)).status in done and b)


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    return {line["custom_id"]: line["response"] for line in lines}


def test_a_batch_through_the_official_client(client: openai.OpenAI, service: Service) -> None:
    """Valid lines, a poison line and an invalid one each end as they would alone, and none stops the others."""
    body = {"prompt": "a cat", "seed": 5, "num_inference_steps": 4}
    data = jsonl(*(body | {"seed": i} for i in range(100)), {"prompt": "[raise]"}, {"prompt": "x", "guidance": 3})
    batch = wait_until_over(client, create(client, data).id)
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


def test_the_lines_of_an_ended_batch_expire_when_it_does(new_service: Callable[..., Service]) -> None:
    """They were kept for a day longer, as for a batch that lasts the whole window, and charged to their API key."""
    service = new_service(batch_ttl_s=100)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        batch = wait_until_over(client, create(client, jsonl({"prompt": "a cat"}, {"prompt": "[raise]"})).id)
        assert len(results(client, batch.output_file_id)) == 1
    keys, found = Keys(service.settings.namespace), redis.Redis.from_url(service.settings.redis_url)
    names = [f"{batch.id}_{number}" for number in range(2)]
    for name in names:
        assert 0 < found.ttl(keys.job_hash(name)) <= 100
        assert 0 < found.ttl(keys.tombstone(name)) <= 100 + 86400
        assert found.hget(keys.job_hash(name), "expires_at") is not None
    for file in found.scan_iter(match=keys.result_bytes(names[0], "*", "*").replace("{", "[{]").replace("}", "[}]")):
        assert 0 < found.ttl(file) <= 100 + RESULT_EXTRA_S
    ended = dict(found.zrange(keys.ended_zset, 0, -1, withscores=True))
    lines = {name.decode().split()[0]: at for name, at in ended.items()}
    now = found.time()[0]
    assert all(now < lines[name] <= now + 101 for name in names)
    found.close()


def test_lines_carry_the_warnings_that_a_request_gets(client: openai.OpenAI, service: Service) -> None:
    """A mapped quality, or a word that the model does not know, was told to synchronous callers only."""
    body = {"prompt": "a zebra", "quality": "standard", "style": "vivid"}
    batch = wait_until_over(client, create(client, jsonl(body, {"prompt": "a cat"})).id)
    lines = results(client, batch.output_file_id)
    alone = httpx.post(service.settings.base_url + URL, json=body).json()["warnings"]
    assert len(alone) == 3 and lines["line-0"]["body"]["warnings"] == alone
    assert lines["line-1"]["body"]["warnings"] == []


def test_files_can_be_listed_downloaded_and_deleted(client: openai.OpenAI) -> None:
    """A download returns the uploaded bytes; a deleted file is a 404."""
    data = jsonl({"prompt": "a cat"})
    file = client.files.create(file=("my prompts.jsonl", data), purpose="batch")
    assert (file.filename, file.bytes, client.files.content(file.id).content) == ("my prompts.jsonl", len(data), data)
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content("file-out-batch_none")
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("x", b""), purpose="batch")
    assert caught.value.param == "file"


def test_a_malformed_file_fails_the_whole_batch(client: openai.OpenAI) -> None:
    """The error names the first malformed line, and no image is generated."""
    batch = wait_until_over(client, create(client, jsonl({"prompt": "x"}) + b"\nnot json").id)
    assert batch.status == "failed" and batch.errors is not None
    [error] = batch.errors.data
    assert (error.line, error.code) == (2, "invalid_json_line")


def test_a_batch_survives_its_gateway_and_lets_others_pass(new_service: Callable[..., Service], hold: Hold) -> None:
    """After a SIGKILL another gateway continues the batch, every line is generated once, and other callers do not wait
    behind it."""
    service = new_service(fake_step_ms=10.0, max_rows=4, max_queue=MAX_UNFINISHED_JOBS + 10)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=5) as client:
        lines = [{"prompt": "a cat", "seed": i, "num_inference_steps": 8} for i in range(299)]
        batch = create(client, jsonl(*lines, {"prompt": hold.prompt()}))  # the last one ends when it may
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 20)
        service.gateway.kill()
        service.gateway.wait(timeout=60)
        service.gateway = start("gateway", service.settings)
        service.client.wait_ready(timeout_s=60)
        before = client.batches.retrieve(batch.id).request_counts.completed
        service.client.generate("in between", quality="low")
        after = client.batches.retrieve(batch.id).request_counts.completed
        assert before > 250 or after < 299, "it waited for all lines but the held one"
        hold.release()
        done = wait_until_over(client, batch.id)
        assert (done.request_counts.completed, len(results(client, done.output_file_id))) == (300, 300)
    text = service.client._call("GET", "/metrics").text
    assert 'fluid_jobs_submitted_total{kind="batch"} 300.0' in text


def test_a_batch_waits_for_the_first_worker(new_service: Callable[..., Service]) -> None:
    """Created before any worker had registered its model, a batch used to have every line rejected with "no worker"."""
    service = new_service(workers=0)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=5) as client:
        batch = until(lambda: _created(client, jsonl({"prompt": "a cat"}, {"prompt": "a dog"})))
        until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
        with redis.Redis.from_url(service.settings.redis_url) as valkey:
            due = Keys(service.settings.namespace).batches_zset
            for _ in range(3):
                due_at = valkey.zscore(due, batch.id)
                until(lambda due_at=due_at: valkey.zscore(due, batch.id) != due_at, what="another step")  # type: ignore[misc]
        service.add_worker()
        done = wait_until_over(client, batch.id)
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 0)


def _created(client: openai.OpenAI, data: bytes) -> Any:
    """Return None while the gateway is starting."""
    try:
        return create(client, data)
    except openai.APIConnectionError:
        return None


def test_a_canceled_batch_keeps_its_finished_images(new_service: Callable[..., Service]) -> None:
    """Canceling the remaining lines must not throw away an hour of work."""
    service = new_service(fake_step_ms=10.0, max_rows=2)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused") as client:
        batch = create(client, jsonl(*({"prompt": "a cat", "num_inference_steps": 20} for i in range(200))))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed > 4)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = wait_until_over(client, batch.id)
        counts = done.request_counts
        assert done.status == "cancelled" and 4 < counts.completed < 200
        assert len(results(client, done.output_file_id)) == counts.completed
    until(lambda: "fluid_jobs_inflight 0.0" in service.client._call("GET", "/metrics").text)


async def uploaded(queue: JobQueue, data: bytes) -> str:
    return (await FileStore(queue, 3600).add("", "in.jsonl", "batch", data)).id


@pytest.mark.anyio
async def test_a_line_that_raises_unexpectedly_fails_alone(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to raise in every step, so the lines behind it were never generated (half a surrogate pair did this)."""
    submit = runner._submit

    async def failing(batch: Batch, number: int, line: Line) -> None:
        if number == 0:
            raise ValueError("unexpected")
        await submit(batch, number, line)

    monkeypatch.setattr(runner, "_submit", failing)
    batch = await store.create("", await uploaded(queue, jsonl({"prompt": "x"}, {"prompt": "a cat"})), None, "")
    await runner.advance(batch.id)
    await runner.advance(batch.id)
    batch = await store.get("", batch.id)
    assert (batch.cursor, batch.rejected, batch.unfinished) == (2, 1, 1)
    [line] = [each async for each in store.results(batch, errors=True)]
    assert (line.number, line.custom_id, line.job) == (0, "line-0", None)
    assert line.rejection and line.rejection["status"] == 500
    assert (await queue.get(batch.job_id(1))).input.prompt == "a cat"


@pytest.mark.anyio
async def test_a_batch_expires_whatever_its_status(queue: JobQueue, store: BatchStore, runner: BatchRunner) -> None:
    """A batch that could not be validated used to live forever: expiry was checked only after validation."""
    batch = await store.create("", await uploaded(queue, jsonl({"prompt": "x"})), None, "")
    await queue.redis.hset(queue.keys.batch_hash(batch.id), "expires_at", time.time() - 1)
    await runner.advance(batch.id)
    assert (await store.get("", batch.id)).status == "expired"
    assert await queue.redis.zscore(queue.keys.batches_zset, batch.id) is None
    assert 0 < await queue.redis.ttl(queue.keys.batch_hash(batch.id)) <= 3600


@pytest.mark.anyio
@pytest.mark.parametrize("lines", [jsonl({"prompt": "x"}), b"not json"])
async def test_a_cancel_during_validation_is_not_overwritten(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, lines: bytes
) -> None:
    """The step used to read "validating" before the cancel, set "in_progress" after it, and generate every line."""
    seen = await store.create("", await uploaded(queue, lines), None, "")
    assert (await store.cancel("", seen.id)).status == "cancelling"
    await runner._validate(seen)
    assert (await store.get("", seen.id)).status == "cancelling"
    await runner.advance(seen.id)
    assert (await store.get("", seen.id)).status == "cancelled"
    await store.transition(seen, "completed", expected=("in_progress",))
    assert (await store.cancel("", seen.id)).status == "cancelled"
    async for key in queue.redis.scan_iter(f"{queue.keys.root}:batch*"):
        if seen.id in key:
            assert await queue.redis.ttl(key) > 0, key


@pytest.mark.anyio
@pytest.mark.parametrize("field", [
    {"priority": "high"}, {"priority": "normal"}, {"stream": True}, {"partial_images": 2},
    {"webhook": "https://example.com"}, {"response_format": "url"},
])  # fmt: skip
async def test_parameters_that_lines_do_not_support_are_rejected_by_name(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, field: dict[str, Any]
) -> None:
    """High priority used to starve the callers who wait for a response, previews were stored but never read, `url` was
    silently ignored, and a webhook was rejected as 'stream'."""
    harmless = {"priority": "low", "stream": False, "partial_images": 0, "response_format": "b64_json"}
    lines = jsonl({"prompt": "x"} | field, {"prompt": "x"} | harmless)
    batch = await store.create("", await uploaded(queue, lines), None, "")
    for _ in range(2):
        await runner.advance(batch.id)
    batch = await store.get("", batch.id)
    [line] = [each async for each in store.results(batch, errors=True)]
    assert line.rejection is not None
    assert (line.custom_id, line.rejection["status"]) == ("line-0", 400)
    assert [line.rejection["body"]["error"]["param"]] == list(field)
    assert (await queue.get(batch.job_id(1))).input.priority == "low"


def test_a_replayed_line_counts_once(new_service: Callable[..., Service]) -> None:
    """Its second end was counted in the batch too, which was complete while a line of it still ran."""
    service = new_service()
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        batch = wait_until_over(client, create(client, jsonl({"prompt": "[raise]"}, {"prompt": "a cat"})).id)
        replayed = fluid(service.settings, "dlq", "replay", f"{batch.id}_0")
        assert replayed.returncode == 0, replayed.stderr
        job = service.client.wait(replayed.stdout.split()[-1], timeout_s=60)
        assert job["status"] == "failed"
        counts = client.batches.retrieve(batch.id).request_counts
        assert counts and (counts.total, counts.completed, counts.failed) == (2, 1, 1)


def test_a_batch_whose_lines_are_lost_ends_those_that_run(new_service: Callable[..., Service]) -> None:
    """It was "failed" at once: up to 64 of its jobs went on, and were kept for a day longer than the batch."""
    service = new_service()
    service.workers[0].terminate()
    service.workers[0].wait(timeout=60)
    keys, store = Keys(service.settings.namespace), redis.Redis.from_url(service.settings.redis_url)
    with openai.OpenAI(base_url=f"{service.settings.base_url}/v1", api_key="unused", max_retries=0) as client:
        made = create(client, jsonl(*({"prompt": "a cat", "seed": i} for i in range(MAX_UNFINISHED_JOBS + 10))))
        until(lambda: store.exists(keys.job_hash(f"{made.id}_{MAX_UNFINISHED_JOBS - 1}")), what="its first lines")
        store.delete(keys.batch_index(made.id))
        service.client.cancel(f"{made.id}_0")  # there is room for the next line
        batch = wait_until_over(client, made.id)
        assert batch.status == "failed" and "are gone" in batch.errors.data[0].message
        states = {service.client.job(f"{made.id}_{number}")["status"] for number in range(MAX_UNFINISHED_JOBS)}
        assert states == {"canceled"}
