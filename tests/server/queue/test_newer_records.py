"""Records of a newer version: whatever lies in Redis, the service answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis

from server import records
from server.errors import UnreadableRecord
from server.gateway import pagination
from server.jobs import JobError, JobMetrics, JobState, Output, Resume
from server.model_info import ModelInfo
from server.queue.dead_letters import DeadLetters
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.lease_queue import TOKENS, LeaseQueue
from server.queue.registry import Registry, WorkerInfo
from server.queue.statistics import queue_counts
from server.worker.engine.fake import FakeEngine
from tests.server.harness import MODEL, Service, accept, lapse, take

pytestmark = pytest.mark.anyio
WORKER = {"id": "w", "state": "ready", "model": MODEL, "max_rows": 1, "rows": 0, "started_at": 1.0}
UNREADABLE = ["", "null", "[]", "{", '"text"', "7", "{}", '{"id": 3}', "[" * 5000]


@pytest.fixture
def registry(queue: JobQueue) -> Registry:
    return Registry(queue.redis, queue.keys.namespace)


async def test_unknown_fields_of_workers_and_models_are_ignored(registry: Registry) -> None:
    """One extra field, as in an upgrade with the workers first, made POST, /health/ready, /v1/models and /metrics
    answer 500 until someone deleted the entry."""
    newer = json.loads(ModelInfo.from_mapping(FakeEngine(1, 0).info()).to_json()) | {"id": "newer", "colours": [1]}
    await registry.redis.hset(registry.keys.models_hash, "newer", json.dumps(newer))
    await registry.heartbeat(WorkerInfo(**WORKER), {})  # type: ignore[arg-type]
    await registry.redis.set(registry.keys.worker("w"), json.dumps(WORKER | {"gpu": {"name": "x"}, "state": "resting"}))
    assert set(await registry.models()) == {MODEL, "newer"}
    assert [w.state for w in await registry.workers()] == ["resting"]


@pytest.mark.parametrize("text", [*UNREADABLE, json.dumps(WORKER | {"rows": "many"})])
async def test_unreadable_workers_and_models_are_skipped(registry: Registry, text: str) -> None:
    await registry.heartbeat(WorkerInfo(**WORKER), {})  # type: ignore[arg-type]
    await registry.redis.zadd(registry.keys.workers_zset, {"odd": 1e12})
    await registry.redis.set(registry.keys.worker("odd"), text)
    await registry.redis.hset(registry.keys.models_hash, "odd", text)
    assert [w.id for w in await registry.workers()] == ["w"]
    assert set(await registry.models()) == {MODEL}


async def test_an_unreadable_reload_request_and_statistic_are_skipped(registry: Registry, queue: JobQueue) -> None:
    await registry.redis.hset(registry.keys.reloads_hash, "checkpoint:c", "soon other")
    await registry.redis.hset(registry.keys.stats_hash, "a|b|total", "many")
    await registry.redis.hset(registry.keys.counters_hash, mapping={"state:paused": "x", "submitted:new:kind": "2"})
    assert await registry.reload_request("c") is None
    assert await registry.stats() == {}
    assert (await queue_counts(queue)).submitted == {"new:kind": 2}


CHANGES: list[dict[str, str]] = [
    {"state": "paused"},
    {"input": "{"},
    {"input": '{"prompt": 3}'},
    {"outputs": '[{"index": 0}]'},
    {"error": "[]x"},
    {"metrics": '{"queue_time": []}'},
    {"attempt": "several"},
    {"created_at": "yesterday"},
]


@pytest.mark.parametrize("change", CHANGES)
async def test_an_unreadable_job_is_skipped_in_lists_and_a_503_alone(queue: JobQueue, change: dict[str, str]) -> None:
    """A state of a newer version was an unhandled ValueError in the whole list."""
    for job_id in ("first", "odd", "last"):
        await accept(queue, job_id)
    await queue.redis.hset(queue.keys.job_hash("odd"), mapping=change)
    found = await pagination.page(queue, "", limit=20, after=None, status=None)
    assert [record.id for record in found.records] == ["last", "first"] and not found.has_more
    with pytest.raises(UnreadableRecord):
        await queue.get("odd")


async def test_unknown_fields_of_a_job_are_ignored(queue: JobQueue) -> None:
    await accept(queue, "job")
    fields = await queue.redis.hgetall(queue.keys.job_hash("job"))
    output = {"index": 0, "seed": 1, "width": 1, "height": 1, "format": "png", "size_bytes": 1, "sha256": "", "new": 1}
    newer = {
        "input": json.dumps(json.loads(fields["input"]) | {"weather": "rain"}),
        "outputs": json.dumps([output]),
        "error": json.dumps({"code": "c", "message": "m", "hint": "h"}),
        "metrics": json.dumps(dict.fromkeys((*JobMetrics.__dataclass_fields__, "new"), 1) | {"kernels": "torch"}),
        "colour": "red",
    }  # fmt: skip
    await queue.redis.hset(queue.keys.job_hash("job"), mapping=newer)
    record = await queue.get("job")
    assert (record.outputs[0].seed, record.error) == (1, JobError("c", "m"))


@pytest.mark.parametrize(
    "change", [{"prompt": ["a private prompt"]}, {"seed": "a private prompt"}, {"edit": "private"}]
)
async def test_a_warning_about_a_record_quotes_none_of_it(
    queue: JobQueue, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The warning quoted the value that has the wrong type, up to 40 characters."""
    await accept(queue, "odd")
    whole = json.loads(await queue.redis.hget(queue.keys.job_hash("odd"), "input"))
    await queue.redis.hset(queue.keys.job_hash("odd"), "input", json.dumps(whole | change))
    records._log_once.cache_clear()
    assert (await pagination.page(queue, "", limit=20, after=None, status=None)).records == []
    assert "skipping a job" in caplog.text and "private" not in caplog.text


async def test_a_worker_survives_a_job_that_it_cannot_read(queue: JobQueue, leases: LeaseQueue) -> None:
    """The exception ended the worker; the next one reclaimed the job and died too. Now it fails after its attempts."""
    await accept(queue, "odd")
    await accept(queue, "fine")
    await queue.redis.hset(queue.keys.job_hash("odd"), "input", '{"prompt": 3}')
    for _ in range(3):
        assert await leases.take("w", MODEL) is None
    assert (await take(leases)).job_id == "fine"
    assert await queue.redis.hget(queue.keys.job_hash("odd"), "state") == JobState.FAILED
    assert [letter.job_id async for letter in DeadLetters(queue).all()] == []


async def test_a_lease_and_an_image_of_an_older_version_are_taken_over(queue: JobQueue, leases: LeaseQueue) -> None:
    """Tokens were small numbers, counted in Redis. Workers of both versions share a queue during an upgrade."""
    await accept(queue, "a", n=2)
    lease = await take(leases, "old")
    await queue.redis.hset(queue.keys.job_hash("a"), "token", 1)
    old = replace(lease, token=1)
    first = Output(0, 7, 32, 32, "png", 3, "00")  # its token is 1 where an older version wrote none
    await queue.redis.set(queue.keys.result_bytes("a", 1, 0), b"one")
    await leases.save(old, "sha", snapshots={}, outputs=[first])
    await lapse(queue, "a")
    [heir] = await leases.reclaim("new", MODEL, [], count=1)
    assert (await leases.resume(heir, "sha")).outputs == {0: first}
    assert not await leases.finish(old, JobState.SUCCEEDED)
    second = Output(1, 8, 32, 32, "png", 3, "00", heir.token)
    assert await leases.finish(heir, JobState.SUCCEEDED, outputs=[first, second], files={1: b"two"})
    record = await queue.get("a")
    assert [await queue.result(record, output) for output in record.outputs] == [b"one", b"two"]


async def test_an_older_worker_can_count_on_from_a_random_token(queue: JobQueue, leases: LeaseQueue) -> None:
    """Its scripts add one, write the token into a key, and its gateway reads it as a number."""
    await accept(queue, "a")
    lease = await take(leases)
    key = queue.keys.job_hash("a")
    assert await queue.redis.eval("return redis.call('HINCRBY', KEYS[1], 'token', 1)", 1, key) == lease.token + 1
    script = "return 'result:' .. cjson.decode(ARGV[1]).token"
    assert await queue.redis.eval(script, 0, json.dumps({"token": TOKENS})) == f"result:{TOKENS}"
    assert (await queue.get("a")).token == lease.token + 1


@pytest.mark.parametrize("damage", ["delete", "no model"])
async def test_a_waiting_job_without_a_record_blocks_no_other(queue: JobQueue, leases: LeaseQueue, damage: str) -> None:
    """Each take failed in Lua, and nothing behind that job was ever generated."""
    for job_id in ("odd", "fine"):
        await accept(queue, job_id)
    if damage == "delete":
        await queue.redis.delete(queue.keys.job_hash("odd"))
    else:
        await queue.redis.hdel(queue.keys.job_hash("odd"), "model")
    assert (await take(leases)).job_id == "fine"
    await queue.redis.zadd(queue.keys.leases_zset(MODEL), {"ghost": 0})
    assert await leases.reclaim("w2", MODEL, [], count=5) == []


@pytest.mark.parametrize("change", [{"class": "urgent"}, {"caller": "else"}, {"state": "paused"}, {"attempt": "many"}])
async def test_a_record_that_says_otherwise_keeps_no_script_in_a_loop(
    queue: JobQueue, leases: LeaseQueue, change: dict[str, str]
) -> None:
    """A job whose record named another class aged into a second lease, and then take.lua met it again without end:
    Redis answered BUSY to everyone."""
    for job_id in ("odd", "fine"):
        await accept(queue, job_id)
    await queue.redis.hset(queue.keys.job_hash("odd"), mapping=change)
    await queue.redis.zadd(queue.keys.waiting_since_zset(MODEL, "normal"), {"odd": 0})
    async with asyncio.timeout(60):
        assert (await take(leases)).job_id == "fine"
        for _ in range(5):
            assert await leases.take("w", MODEL) is None
        await queue.sweep()
        with pytest.raises(UnreadableRecord) if "class" not in change and "caller" not in change else nullcontext():
            await queue.cancel("odd")


def test_unreadable_progress_starts_over() -> None:
    found = Resume.from_fields({b"output:0": b"{", b"output:x": b"{}", b"snapshot:2": b"s", b"video:1": b"v"})
    assert (dict(found.outputs), dict(found.snapshots)) == ({}, {2: b"s"})


async def test_unreadable_dead_letters_are_skipped(queue: JobQueue) -> None:
    for fields in ({"new": "x"}, {"id": "a", "kind": "job", "attempt": "1", "error": "{}", "input": "{}"}):
        await queue.redis.xadd(queue.keys.dead_letters_stream, fields)
    assert [letter async for letter in DeadLetters(queue).all()] == []


def test_the_service_answers_beside_records_of_a_newer_version(new_service: Callable[..., Service]) -> None:
    """Every kind of record at once, over HTTP: nothing is a 500, and the service still generates."""
    service = new_service()
    keys = Keys(service.settings.namespace)
    job = service.client.submit("an apple")["id"]
    service.client.wait(job, timeout_s=60)
    odd: dict[str, Any] = {"status": "paused", "owner": "", "x": "y"}
    with redis.Redis.from_url(service.settings.redis_url, decode_responses=True) as client:
        client.hset(keys.models_hash, "odd", "{")
        client.set(keys.worker("odd"), '{"id": 3}')
        client.zadd(keys.workers_zset, {"odd": 1e12})
        client.hset(keys.stats_hash, mapping={"fluid_images_total|a|b|total": "1", "odd": "2", "x|y": "z"})
        client.hset(keys.stats_hash, "fluid_worker_starts_total||sum", "1")
        client.xadd(keys.dead_letters_stream, {"x": "y"})
        client.hset(keys.job_hash(job), mapping={"state": "paused"})
        for kind in ("batch", "file"):
            client.hset(getattr(keys, f"{kind}_hash")(f"{kind}-odd"), mapping=odd)
            client.zadd(getattr(keys, f"{kind}_list")(""), {f"{kind}-odd": 1e12})
        client.zadd(keys.batches_zset, {"batch-odd": 0})
        client.hset(keys.webhook_hash("odd"), mapping={"message": "{}", "attempts": "x"})
        client.zadd(keys.webhooks_zset(""), {"odd": 0})
        client.zadd(keys.webhook_owners_zset, {"": 0})
    for path in ("/health/ready", "/v1/models", "/metrics", "/v1/jobs", "/v1/batches", "/v1/files"):
        answer = httpx.get(service.settings.base_url + path)
        assert answer.status_code == 200, (path, answer.text)
    for path in (f"/v1/jobs/{job}", "/v1/batches/batch-odd", "/v1/files/file-odd"):
        answer = httpx.get(service.settings.base_url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "record_unreadable"), path
    assert service.client.generate("a cat", quality="low")
