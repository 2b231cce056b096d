"""Source images in FLUID_RESULTS that a worker cannot reach, or that came too late."""

import asyncio
import logging
from dataclasses import replace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from server.errors import StorageUnavailable
from server.jobs import JobState
from server.metrics import Tally
from server.queue import source_images
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue, Preempting
from server.queue.registry import Registry
from server.settings import Settings
from server.worker import results
from server.worker.engine.fake import FakeEngine
from server.worker.loop import Worker
from tests.server.harness import MODEL, accept, lapse, take, until_async
from tests.server.storage.test_upload_faults import edit_of

pytestmark = pytest.mark.anyio


async def test_a_worker_without_the_store_takes_no_edit_over(
    stored: JobQueue, leases: LeaseQueue, stored_leases: LeaseQueue
) -> None:
    """It left waiting ones to others, and requeued those of a worker that died."""
    await stored.enqueue(edit_of("edit"))
    await accept(stored, "plain")
    for _ in range(2):
        assert await stored_leases.take("w1", MODEL)
    await lapse(stored, "edit", "plain")
    leases.leaves_stored = True
    assert [lease.job_id for lease in await leases.reclaim("w2", MODEL, [], count=2)] == ["plain"]
    assert [lease.job_id for lease in await stored_leases.reclaim("w3", MODEL, [], count=2)] == ["edit"]


async def test_a_worker_without_the_store_leaves_edits_to_others(
    stored: JobQueue,
    leases: LeaseQueue,
    stored_leases: LeaseQueue,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It took and requeued them twice a second without end, took nothing else meanwhile, and never said why."""
    for job_id in ("edit_1", "edit_2"):
        await stored.enqueue(edit_of(job_id))
    for job_id in "abc":
        await accept(stored, job_id)
    requeued, requeue = list[str](), LeaseQueue.requeue

    async def count(self: LeaseQueue, lease: object, **options: object) -> str:
        requeued.append(lease.job_id)  # type: ignore[attr-defined]
        return await requeue(self, lease, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LeaseQueue, "requeue", count)
    registry = Registry(leases.redis, settings.namespace)
    worker = Worker(settings, leases, registry, lambda checkpoint: FakeEngine(4, 0.0, checkpoint))
    running = asyncio.create_task(worker.run())

    async def ended() -> bool:
        return all([(await stored.get(job_id)).state.terminal for job_id in "abc"])

    with caplog.at_level(logging.ERROR, "server.worker.intake"):
        await until_async(ended)
    await worker.heartbeat.beat()
    [seen] = await registry.workers()
    assert seen.state == "ready" and "set it as the gateways have it" in seen.note
    worker.stop()
    await running
    assert requeued == ["edit_1"] and len(caplog.records) == 1 and "FLUID_RESULTS" in caplog.text
    assert [(await stored.get(job_id)).attempt for job_id in ("edit_1", "edit_2")] == [0, 0]
    # The callers behind, and jobs that may preempt, are seen; a worker that has the store takes the edits, in turn.
    await accept(stored, "d", user="bob")
    found = await leases.take("w1", "fake", preempting={"normal": Preempting(True, True, [])})
    assert found is not None and found.job_id == "d" and await leases.take("w1", "fake") is None
    assert [(await take(stored_leases)).job_id for _ in range(2)] == ["edit_1", "edit_2"]


async def test_an_edit_whose_image_could_not_be_read_is_not_generated_without_it(
    queue: JobQueue,
    leases: LeaseQueue,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis was away for longer than a lease between the take and the read: the job began without its image, and
    succeeded with an unrelated one. (This source is damaged: the next attempt, which reads it, rejects it.)"""
    await queue.enqueue(replace(edit_of("edit"), source=b"damaged"))
    load = source_images.load

    async def failing(*args: object) -> bytes | None:
        if "cannot take jobs" not in caplog.text:
            raise RedisConnectionError("away")
        return await load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(source_images, "load", failing)
    worker = Worker(settings, leases, Registry(leases.redis, settings.namespace), lambda path: FakeEngine(4, 0.0, path))
    running = asyncio.create_task(worker.run())

    async def ended() -> bool:
        return (await queue.get("edit")).state.terminal

    await until_async(ended)
    job = await queue.get("edit")
    assert (job.state, job.attempt) == (JobState.FAILED, 1) and job.error and "image" in job.error.message
    worker.stop()
    await running


async def test_a_call_of_the_store_that_fails_is_followed_by_a_probe(
    stored_leases: LeaseQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a deletion that failed once, a worker took no jobs until the next regular probe, a quarter of a minute."""
    monkeypatch.setattr(results, "CHECK_S", 3600.0)
    store, writer = stored_leases.store, results.ResultWriter(stored_leases, Tally(), "w1", 1.0)
    assert store is not None
    probed, probe = asyncio.Event(), store.probe

    async def counted(who: str) -> None:
        await probe(who)
        probed.set()

    async def failing(names: tuple[str, ...]) -> None:
        raise OSError("once")

    monkeypatch.setattr(store, "probe", counted)
    running = asyncio.create_task(writer.run())
    await probed.wait()
    with monkeypatch.context() as patch, pytest.raises(StorageUnavailable):
        patch.setattr(store, "_delete", failing)
        await store.delete("n=uploads/job_1-0")

    async def works() -> bool:
        return not writer.trouble

    assert not await works()
    await until_async(works)
    running.cancel()


async def test_an_image_that_was_stored_too_late_is_told_from_a_failover(stored: JobQueue) -> None:
    """The caller read of a failover of Redis where the store had been slow."""
    assert stored.store is not None
    name = "n=uploads/job_1-0"
    await stored.redis.zadd(stored.keys.discarded_zset, {name: 1})
    with pytest.raises(StorageUnavailable, match="took longer than 60 s"):
        await stored._enqueue(edit_of("job_1"), source_object=name)
    await stored.redis.delete(stored.keys.discarded_zset)
    with pytest.raises(Exception, match="failover of Redis"):
        await stored._enqueue(edit_of("job_1"), source_object=name)
