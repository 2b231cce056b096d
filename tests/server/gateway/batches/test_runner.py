"""Batches: OpenAI's files and batches through the official client, restarts, cancel, and room for others."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from server.batch_format import MAX_LINES, Line, LineError, parse_lines
from server.gateway.batches.files import Files
from server.gateway.batches.record import Batch
from server.gateway.batches.runner import WINDOW, Batches
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.registry import Registry
from tests.server.harness import Service, start, until

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
        (b'{"custom_id": "a", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json_line"),
        (b'{"custom_id": "a", "body": {"x": ' + b"[" * 300 + b"]" * 300 + b"}}", "invalid_json_line"),
        (b'{"custom_id": "\\ud800", "body": {}}', "invalid_encoding"),
        (b'{"custom_id": "a", "body": {"\\uD800": 1}}', "invalid_encoding"),
        (b'{"custom_id": "a", "body": {"style": "\\ud800"}}', "invalid_encoding"),
    ],
)
def test_wrong_files_say_why(data: bytes, code: str) -> None:
    """A batch of fifty thousand that fails without a reason is a day lost. Nested too deep, it was validated for ever;
    half of a surrogate pair stopped every line behind it, or broke off the file of results."""
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


def test_only_line_feeds_end_lines() -> None:
    """U+2028, U+2029 and U+0085 are valid inside JSON's strings, and cut lines in pieces. Numbers count blank lines:
    an error in line 5 was told of line 2."""
    text = json.dumps({"custom_id": "a", "body": {"prompt": "a\u2028b\u2029c\x85d"}}, ensure_ascii=False)
    [line] = parse_lines(b"\xef\xbb\xbf\n\r\n" + text.encode() + b"\r\n")
    assert line.body["prompt"] == "a\u2028b\u2029c\x85d"
    with pytest.raises(LineError) as caught:
        parse_lines(text.encode() + b"\n\n\n\nx")
    assert caught.value.line == 5


def test_too_many_lines_are_counted_before_they_are_kept() -> None:
    """A file of 32 MiB took 642 MiB before it was refused."""
    data = b"abc\n" * (1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(LineError, match="1048576 lines"):
            parse_lines(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def batches_of(queue: JobQueue) -> Batches:
    fleet = Fleet(Registry(queue.redis, queue.keys.namespace))
    return Batches(queue, fleet, Files(queue, 3600), 3600, GatewayMetrics().bugs)


async def uploaded(queue: JobQueue, data: bytes) -> str:
    return (await Files(queue, 3600).add("", "in.jsonl", "batch", data)).id


@pytest.mark.anyio
async def test_a_line_that_nobody_foresaw_fails_alone(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raised in every turn, so that no line behind it was ever drawn. Half a surrogate pair did, once."""
    batches = batches_of(queue)
    submit = batches._submit

    async def surprised(batch: Batch, number: int, line: Line) -> None:
        if number == 0:
            raise ValueError("nobody foresaw this")
        await submit(batch, number, line)

    monkeypatch.setattr(batches, "_submit", surprised)
    batch = await batches.create("", await uploaded(queue, jsonl({"prompt": "x"}, {"prompt": "a cat"})), None, "")
    await batches._turn(batch.id)
    await batches._turn(batch.id)
    batch = await batches.get("", batch.id)
    assert (batch.cursor, batch.refused, batch.under_way) == (2, 1, 1)
    [(number, custom_id, record, why)] = [each async for each in batches.results(batch, errors=True)]
    assert (number, custom_id, record) == (0, "line-0", None) and json.loads(why)["status"] == 500
    assert (await queue.get(batch.job_id(1))).input.prompt == "a cat"


@pytest.mark.anyio
async def test_every_live_batch_expires(queue: JobQueue) -> None:
    """One that could not be validated was so for ever: its end was looked at only after that."""
    batches = batches_of(queue)
    batch = await batches.create("", await uploaded(queue, jsonl({"prompt": "x"})), None, "")
    await queue.redis.hset(queue.keys.batch_hash(batch.id), "expires_at", time.time() - 1)
    await batches._turn(batch.id)
    assert (await batches.get("", batch.id)).status == "expired"
    assert await queue.redis.zscore(queue.keys.batches_zset, batch.id) is None
    assert 0 < await queue.redis.ttl(queue.keys.batch_hash(batch.id)) <= 3600


@pytest.mark.anyio
@pytest.mark.parametrize("lines", [jsonl({"prompt": "x"}), b"not json"])
async def test_a_cancel_while_the_file_is_validated_holds(queue: JobQueue, lines: bytes) -> None:
    """The turn had read "validating" before the cancel, wrote "in_progress" over it, and everything was drawn."""
    batches = batches_of(queue)
    seen = await batches.create("", await uploaded(queue, lines), None, "")
    assert (await batches.cancel("", seen.id)).status == "cancelling"
    await batches._validate(seen)
    assert (await batches.get("", seen.id)).status == "cancelling"
    await batches._turn(seen.id)
    assert (await batches.get("", seen.id)).status == "cancelled"
    await batches._move(seen, "completed", of=("in_progress",))
    assert (await batches.cancel("", seen.id)).status == "cancelled"
    async for key in queue.redis.scan_iter(f"{queue.keys.root}:batch*"):
        if seen.id in key:
            assert await queue.redis.ttl(key) > 0, key


@pytest.mark.anyio
@pytest.mark.parametrize("field", [
    {"priority": "high"}, {"priority": "normal"}, {"stream": True}, {"partial_images": 2},
    {"webhook": "https://example.com"}, {"response_format": "url"},
])  # fmt: skip
async def test_what_a_line_cannot_have_is_refused_by_name(queue: JobQueue, field: dict[str, Any]) -> None:
    """A line of high priority starved everybody who waited for an answer; previews were stored for nobody; a url was
    silently not given; and a webhook was refused as 'stream'."""
    batches = batches_of(queue)
    harmless = {"priority": "low", "stream": False, "partial_images": 0, "response_format": "b64_json"}
    lines = jsonl({"prompt": "x"} | field, {"prompt": "x"} | harmless)
    batch = await batches.create("", await uploaded(queue, lines), None, "")
    for _ in range(2):
        await batches._turn(batch.id)
    batch = await batches.get("", batch.id)
    [(_, custom_id, _, why)] = [each async for each in batches.results(batch, errors=True)]
    told = json.loads(why)
    assert (custom_id, told["status"], [told["body"]["error"]["param"]]) == ("line-0", 400, list(field))
    assert (await queue.get(batch.job_id(1))).input.priority == "low"
