"""What files and batches of one API key may take. A file that several batches read is stored once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from server.errors import BodyTooLarge, QueueFull, RateLimited, UnknownFile
from server.errors.limits import MIB
from server.gateway.batches.files import FileStore
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.jobs import JobState
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.queue.statistics import queue_counts, usage_by_owner
from tests.server.conftest import fake_settings
from tests.server.harness import Service, take

TTL_S = 3600


def lines(count: int) -> bytes:
    body = {"prompt": "a cat " + "x" * 900, "num_inference_steps": 2}
    return b"\n".join(json.dumps({"custom_id": f"line-{i}", "body": body}).encode() for i in range(count))


@pytest.fixture
def files(queue: JobQueue) -> FileStore:
    return FileStore(queue, TTL_S)


@pytest.fixture
def store(queue: JobQueue, files: FileStore) -> BatchStore:
    return BatchStore(queue, files, TTL_S, max_batches=3)


@pytest.fixture
def runner(queue: JobQueue, files: FileStore, store: BatchStore) -> BatchRunner:
    fleet = Fleet(Registry(queue.redis, queue.keys.namespace))
    return BatchRunner(queue, fleet, files, store, TTL_S, GatewayMetrics().bugs)


async def stored(queue: JobQueue, owner: str) -> int:
    return {usage.owner: usage.stored_bytes for usage in await usage_by_owner(queue)}.get(owner, 0)


@pytest.mark.anyio
async def test_files_of_one_key_are_limited_by_bytes(queue: JobQueue, files: FileStore) -> None:
    """Six files of 30 MiB took 223 MiB of Redis, and nothing would have stopped the hundredth."""
    queue.memory_limits["max_key_bytes"] = MIB
    half = b"x" * (MIB // 2 - 2048)
    first = await files.add("ann", "a", "batch", half)
    await files.add("ann", "b", "batch", half)
    with pytest.raises(RateLimited, match="FLUID_MAX_KEY_MIB") as caught:
        await files.add("ann", "c", "batch", half)
    assert caught.value.param == "file"
    with pytest.raises(BodyTooLarge, match=r"an API key may store 1 MiB \(FLUID_MAX_KEY_MIB\)"):
        await files.add("ann", "d", "batch", 3 * half)
    await files.add("bob", "c", "batch", half)
    await files.delete("ann", first.id)
    await files.add("ann", "c", "batch", half)
    queue.memory_limits["max_bytes"] = 3 * MIB // 2
    with pytest.raises(QueueFull, match="FLUID_MAX_MIB"):
        await files.add("eve", "c", "batch", half)


@pytest.mark.anyio
async def test_expired_files_give_their_bytes_back(queue: JobQueue, files: FileStore) -> None:
    file = await files.add("ann", "a", "batch", b"x" * 1000)
    assert await stored(queue, "ann") == 2024 == (await queue_counts(queue)).stored_bytes
    [name] = await queue.redis.zrange(queue.keys.stored_zset, 0, -1)
    await queue.redis.zadd(queue.keys.stored_zset, {name: 1})
    await queue.sweep()
    assert await stored(queue, "ann") == 0 == (await queue_counts(queue)).stored_bytes
    await files.delete("ann", file.id)
    assert await stored(queue, "ann") == 0


@pytest.mark.anyio
async def test_a_file_whose_content_cannot_be_stored_counts_nothing(
    queue: JobQueue, files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis may be full, or away for a moment, between the two steps."""

    async def fail(*args: Any, **options: Any) -> None:
        raise RedisConnectionError("lost")

    monkeypatch.setattr(files._redis, "set", fail)
    with pytest.raises(RedisConnectionError):
        await files.add("ann", "a", "batch", b"x" * 1000)
    assert await stored(queue, "ann") == 0 and await files.list("ann", 10, None) == ([], False)


@pytest.mark.anyio
async def test_batches_of_one_file_store_it_once(
    queue: JobQueue, leases: LeaseQueue, files: FileStore, store: BatchStore, runner: BatchRunner
) -> None:
    """Each batch copied all its lines: two batches of one file took three times its size."""
    data = lines(200)
    file = await files.add("ann", "in.jsonl", "batch", data)
    before = await queue.redis.memory_usage(queue.keys.file_bytes(file.id))
    batches = [await store.create("ann", file.id, None, "") for _ in range(2)]
    for batch in batches:
        await runner.advance(batch.id)
    own = 0
    async for key in queue.redis.scan_iter(f"{queue.keys.root}:batch*"):
        own += await queue.redis.memory_usage(key)
    assert own < before / 10
    await files.delete("ann", file.id)
    with pytest.raises(UnknownFile):
        await files.get("ann", file.id)
    queue.limits["max_batch_lines"] = 1
    for batch in batches:
        await runner.advance(batch.id)
    lease = await take(leases)
    assert lease.input.prompt.startswith("a cat")
    await leases.finish(lease, JobState.SUCCEEDED)
    done = await store.get("ann", lease.input.batch)
    assert [each.custom_id async for each in store.results(done, errors=False)] == ["line-0"]
    assert await stored(queue, "ann") > len(data), "the file counts while batches need it"
    for batch in batches:
        await store.cancel("ann", batch.id)
        for _ in range(2):
            await runner.advance(batch.id)
        assert (await store.get("ann", batch.id)).status == "cancelled"
    assert 0 < await queue.redis.ttl(queue.keys.file_bytes(file.id)) <= TTL_S + 1


@pytest.mark.anyio
async def test_a_short_lived_file_lives_as_long_as_its_batch(
    queue: JobQueue, files: FileStore, store: BatchStore, runner: BatchRunner
) -> None:
    """Its lines used to be a copy of their own."""
    file = await files.add("ann", "in.jsonl", "batch", lines(2), expires_after_s=60)
    batch = await store.create("ann", file.id, None, "")
    await runner.advance(batch.id)
    assert await queue.redis.ttl(queue.keys.file_bytes(file.id)) > 86400
    assert await queue.redis.ttl(queue.keys.file_hash(file.id)) <= 60


@pytest.mark.anyio
async def test_unfinished_batches_are_limited_per_key(
    queue: JobQueue, files: FileStore, store: BatchStore, runner: BatchRunner
) -> None:
    file = await files.add("ann", "in.jsonl", "batch", lines(1))
    other = await files.add("bob", "in.jsonl", "batch", lines(1))
    made = [await store.create("ann", file.id, None, f"key-{n}") for n in range(3)]
    with pytest.raises(RateLimited, match=r"3 batches of 'ann' are unfinished, the limit is 3 \(FLUID_MAX_BATCHES\)"):
        await store.create("ann", file.id, None, "key-3")
    assert (await store.create("ann", file.id, None, "key-0")).id == made[0].id
    await store.create("bob", other.id, None, "")
    await store.cancel("ann", made[0].id)
    await runner.advance(made[0].id)
    await store.create("ann", file.id, None, "key-3")


@pytest.mark.anyio
async def test_lines_wait_while_their_key_has_no_room(
    queue: JobQueue, leases: LeaseQueue, files: FileStore, store: BatchStore, runner: BatchRunner
) -> None:
    """A refused line used to be a failed one, unless the whole queue was full."""
    queue.limits |= {"max_batch_lines": 2}
    file = await files.add("ann", "in.jsonl", "batch", lines(5))
    batch = await store.create("ann", file.id, None, "")
    ended = 0
    for _ in range(20):
        await runner.advance(batch.id)
        batch = await store.get("ann", batch.id)
        assert batch.unfinished <= 2 and batch.rejected == 0
        if lease := await leases.take("w1", "fake"):
            await leases.finish(lease, JobState.SUCCEEDED)
            ended += 1
    assert ended == 5 and (await store.get("ann", batch.id)).status == "completed"


@pytest.mark.anyio
async def test_a_batch_without_memory_for_its_lines_fails_with_the_reason(
    queue: JobQueue, files: FileStore, store: BatchStore, runner: BatchRunner
) -> None:
    file = await files.add("ann", "in.jsonl", "batch", lines(50))
    batch = await store.create("ann", file.id, None, "")
    queue.memory_limits["max_key_bytes"] = await stored(queue, "ann") + 1000
    await runner.advance(batch.id)
    batch = await store.get("ann", batch.id)
    assert batch.status == "failed" and "FLUID_MAX_KEY_MIB" in batch.fields["errors"]


def test_metadata_is_limited_as_openai_limits_it(service: Service) -> None:
    """A key of 900 kB was stored."""
    with httpx.Client(base_url=service.settings.base_url) as http:
        file = http.post("/v1/files", files={"file": ("in.jsonl", lines(1))}, data={"purpose": "batch"}).json()["id"]
        body = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        for metadata in ({"k" * 65: "v"}, {"k": "v" * 513}, {f"k{n}": "v" for n in range(17)}):
            answer = http.post("/v1/batches", json=body | {"metadata": metadata})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")
            assert any(limit in answer.json()["error"]["message"] for limit in ("64", "512", "16"))
            assert len(answer.text) < 1000
        allowed = {f"{n:064}": "v" * 512 for n in range(16)}
        assert http.post("/v1/batches", json=body | {"metadata": allowed}).json()["metadata"] == allowed


def test_redis_fills_up_no_further_than_workers_can_still_write(tmp_path: Path) -> None:
    """At its maxmemory nothing could finish what had been accepted. The limit of all callers follows it."""
    with EmbeddedValkey(tmp_path, maxmemory_bytes=96 * MIB) as valkey:
        service = Service(replace(fake_settings(valkey), max_key_mib=0))
        try:
            service.add_worker()
            service.client.wait_ready(timeout_s=60)
            with httpx.Client(base_url=service.settings.base_url) as http:
                answers = []
                for _ in range(12):  # of 7 MiB: Redis' own buffers of one must fit into the last quarter
                    form = {"files": {"file": ("in.jsonl", b"x" * (7 * MIB))}, "data": {"purpose": "batch"}}
                    answers.append(http.post("/v1/files", **form))
                assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
                error = answers[-1].json()["error"]
                assert (error["code"], error["param"]) == ("queue_full", "file")
                assert "72.0 MiB (FLUID_MAX_MIB)" in error["message"] and answers[-1].headers["retry-after"]
            assert service.client.generate("a cat", quality="low")
        finally:
            service.close()


@pytest.mark.anyio
async def test_an_expired_batch_leaves_the_list_with_its_record(
    queue: JobQueue, files: FileStore, store: BatchStore
) -> None:
    """It counted towards MAX_LISTED for up to a day after its record was gone."""
    file = await files.add("ann", "in", "batch", lines(1))
    for _ in range(2):
        batch = await store.create("ann", file.id, None, "")
    for name in await queue.redis.zrange(queue.keys.stored_zset, 0, -1):
        if name.startswith(batch.id):
            await queue.redis.zadd(queue.keys.stored_zset, {name: 1})
    await queue.sweep()
    assert await queue.redis.zcard(queue.keys.batch_list("ann")) == 1
