"""Which checkpoint a worker starts with, and that a model's id belongs to one checkpoint at a time."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from server.cli import doctor
from server.errors import ConfigError, ReloadRefused
from server.jobs import JobState
from server.model_info import ModelInfo
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import redis_time
from server.queue.registry import Registry, WorkerInfo
from server.settings import Settings
from server.worker import reload
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import Engine
from server.worker.loop import Worker
from server.worker.reload import Reloader
from tests.server.harness import Hold, accept, until_async

pytestmark = pytest.mark.anyio


def sha256(checkpoint: str) -> str:
    return hashlib.sha256(checkpoint.encode()).hexdigest()


class Blank(FakeEngine):
    """Its images have one colour."""

    def image(self, row: int) -> bytes:
        return bytes(3 * self.image_size[0] * self.image_size[1])


@asynccontextmanager
async def running(leases: LeaseQueue, settings: Settings, *broken: str) -> AsyncIterator[Worker]:
    """A worker in this process, until the end of the block; checkpoints in `broken` cannot be loaded."""

    def factory(checkpoint: str) -> Engine:
        if checkpoint in broken:
            raise ZeroDivisionError
        return Blank(4, 0.0, checkpoint) if checkpoint == "blank" else FakeEngine(4, 0.0, checkpoint)

    worker = Worker(settings, leases, Registry(leases.redis, settings.namespace), factory)
    task = asyncio.create_task(worker.run())
    try:
        await until(lambda: worker.heartbeat.state == "ready" or task.done())
        yield worker
    finally:
        if not task.done():
            worker.stop()
        async with asyncio.timeout(60):
            await task


async def until(check: Callable[[], bool]) -> None:
    async def checked() -> bool:
        return check()

    await until_async(checked)


async def test_a_failed_reload_does_not_outlive_the_worker(leases: LeaseQueue, settings: Settings) -> None:
    """Each later start tried the same request and exited: after a typing error the service was dead for good."""
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as worker:
        request = await registry.request_reload(settings.checkpoint, "missing-typo")
        await until(lambda: worker.heartbeat.reloads == request.number)
        assert "reload 1 failed" in worker.heartbeat.note
    async with running(leases, settings) as worker:
        assert worker.engine.info.checkpoint_sha256 == sha256(settings.checkpoint)
        await asyncio.sleep(0.7)  # a poll for reloads
        assert worker.heartbeat.note == "", "not tried at every start"


async def test_a_reload_that_nobody_has_tried_yet_is_tried(leases: LeaseQueue, settings: Settings) -> None:
    registry = Registry(leases.redis, settings.namespace)
    await registry.request_reload(settings.checkpoint, "better")
    async with running(leases, settings) as worker:
        await until(lambda: worker.heartbeat.reloads == 1)
        assert worker.engine.info.checkpoint_sha256 == sha256("better")
        assert await registry.last_reload(settings.checkpoint) == await registry.reload_request(settings.checkpoint)
    async with running(leases, settings) as worker:
        assert worker.engine.info.checkpoint_sha256 == sha256("better")


async def test_a_start_falls_back_to_the_configured_checkpoint(leases: LeaseQueue, settings: Settings) -> None:
    """The reload had succeeded, and its folder is gone since."""
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as worker:
        request = await registry.request_reload(settings.checkpoint, "better")
        await until(lambda: worker.heartbeat.reloads == request.number)
    async with running(leases, settings, "better") as worker:
        assert worker.engine.info.checkpoint_sha256 == sha256(settings.checkpoint)
        assert "cannot load better of the last reload (ZeroDivisionError)" in worker.heartbeat.note
    with pytest.raises(ConfigError):
        async with running(leases, replace(settings, checkpoint="missing-at-all")):
            pass


async def test_a_worker_adopts_what_another_has_reloaded(leases: LeaseQueue, settings: Settings) -> None:
    """It started while the other one tried, so it left the request alone."""
    registry = Registry(leases.redis, settings.namespace)
    request = await registry.request_reload(settings.checkpoint, "better")
    await registry.begin_reload(request)
    async with running(leases, settings) as worker:
        assert worker.engine.info.checkpoint_sha256 == sha256(settings.checkpoint)
        info = replace(worker.engine.info, checkpoint_sha256=sha256("better"))
        await registry.finish_reload(request, info)
        await until(lambda: worker.engine.info.checkpoint_sha256 == sha256("better"))


async def test_an_id_belongs_to_one_checkpoint(queue: JobQueue, leases: LeaseQueue, settings: Settings) -> None:
    """Two workers with other weights under one id: the same request and seed gave two images, and doctor said ok."""
    registry = Registry(leases.redis, settings.namespace)
    other = replace(settings, checkpoint="other")
    async with running(leases, settings) as first, running(leases, other) as second:
        assert not second.taking and first.taking
        await second.heartbeat.beat()
        assert {w.id: w.state for w in await registry.workers()} == {first.id: "ready", second.id: "waiting"}
        assert (await registry.models())["fake"].checkpoint_sha256 == sha256(settings.checkpoint)
        failed = [f.text async for f in doctor.examine(settings, queue, registry) if f.level is doctor.Level.FAIL]
        assert any(second.id in text and first.id in text and "takes no jobs" in text for text in failed)
        # A reload of the one that waits moves the id on, and the other, whose settings differ, waits in its place.
        request = await registry.request_reload("other", settings.checkpoint)
        await until(lambda: second.heartbeat.reloads == request.number)
        await until(lambda: second.taking)
        assert first.taking, "both have the same checkpoint now"
    async with running(leases, other) as alone:
        await until(lambda: alone.taking)


async def test_the_next_in_line_takes_over(queue: JobQueue, leases: LeaseQueue, settings: Settings) -> None:
    async with running(leases, settings) as first, running(leases, replace(settings, checkpoint="other")) as second:
        assert not second.taking
        first.stop()
        await until(lambda: second.taking)
        await accept(queue, "job")
        await until_async(lambda: _ended(queue))
        assert (await queue.get("job")).state == "succeeded"


async def _ended(queue: JobQueue) -> bool:
    return (await queue.get("job")).state.terminal


async def test_a_reload_rolls_through_two_workers(leases: LeaseQueue, settings: Settings) -> None:
    """Meanwhile both serve, each with its own checkpoint; the one that cannot follow stands aside and says so."""
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as first, running(leases, settings, "worse") as second:
        request = await registry.request_reload(settings.checkpoint, "better")
        await until(lambda: min(first.heartbeat.reloads, second.heartbeat.reloads) == request.number)
        assert {w.engine.info.checkpoint_sha256 for w in (first, second)} == {sha256("better")}
        await until(lambda: first.taking and second.taking)
        request = await registry.request_reload(settings.checkpoint, "worse")
        await until(lambda: min(first.heartbeat.reloads, second.heartbeat.reloads) == request.number)
        await until(lambda: not second.taking)
        assert first.taking and "reload 2 failed" in second.heartbeat.note


def engine_threads() -> set[threading.Thread]:
    """Those alive. One of an earlier test may be among them and end at any time, so compare sets, not their sizes."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("engine")}


@pytest.mark.parametrize(("failure", "stage"), [("worse", "load"), ("blank", "canary"), ("refused", "")])
async def test_a_failed_reload_ends_its_thread(
    failure: str, stage: str, leases: LeaseQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused engine's thread, and with it the engine's memory, stayed until the process ended."""

    async def refuse(reloader: Reloader, info: ModelInfo) -> None:
        raise ReloadRefused("jobs wait for the old one")

    if failure == "refused":
        monkeypatch.setattr(Reloader, "_check_waiting_jobs", refuse)
        monkeypatch.setattr(reload, "PATIENCE_S", 0.0)
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings, "worse") as worker:
        before = engine_threads()
        request = await registry.request_reload(settings.checkpoint, failure)
        await until(lambda: worker.heartbeat.reloads == request.number)
        assert "reload 1 failed" in worker.heartbeat.note
        await until(lambda: engine_threads() <= before)
    stats = await registry.stats()
    counted = {name.split("|")[1]: n for name, n in stats.items() if name.startswith("fluid_engine_failures_total")}
    assert counted == ({stage: 1.0} if stage else {})


@pytest.mark.parametrize("when", ["loading", "loaded"])
async def test_a_worker_that_stops_during_a_reload_ends(
    when: str, queue: JobQueue, leases: LeaseQueue, settings: Settings, hold: Hold
) -> None:
    """The other engine's thread waited for calls for ever, and the interpreter for the thread: a worker that had been
    stopped hung until it was killed, and one whose engine broke was never replaced."""
    registry, loads, before = Registry(leases.redis, settings.namespace), threading.Event(), engine_threads()

    def factory(checkpoint: str) -> Engine:
        if checkpoint == "slow":
            loads.wait()
        return FakeEngine(4, 0.0, checkpoint)

    worker = Worker(settings, leases, registry, factory)
    task = asyncio.create_task(worker.run())
    await until(lambda: worker.heartbeat.state == "ready")
    await accept(queue, "held", prompt=hold.prompt())  # the other engine does not take over before it ends
    await until(lambda: bool(worker.scheduler.rows))
    await registry.request_reload(settings.checkpoint, "slow")
    if when == "loaded":
        loads.set()
        await until(lambda: worker.reloader.ready is not None)
    else:
        await until(lambda: len(engine_threads() - before) == 2)
    worker.stop()
    hold.release()
    async with asyncio.timeout(60):
        await task
    assert worker.hung_thread is (when == "loading"), "then the process exits without waiting for it"
    loads.set()
    await until(lambda: engine_threads() <= before)


async def reload_beside_jobs(worker: Worker, queue: JobQueue, registry: Registry, hold: Hold) -> None:
    """Have the worker reload to another model while it runs a job, let another one come meanwhile, and wait."""
    await accept(queue, "held", prompt=hold.prompt())
    await until(lambda: bool(worker.scheduler.rows))
    request = await registry.request_reload(worker.settings.checkpoint, "fake-other")
    await until(lambda: worker.reloader.ready is not None)
    await accept(queue, "job")
    hold.release()
    await until(lambda: worker.heartbeat.reloads == request.number)


async def test_a_reload_leaves_no_job_behind(
    queue: JobQueue, leases: LeaseQueue, settings: Settings, hold: Hold
) -> None:
    """Jobs that came while the old engine finished, or were requeued for it, waited for a model without a worker."""
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as worker:
        await reload_beside_jobs(worker, queue, registry, hold)
        assert (await queue.get("job")).state is JobState.SUCCEEDED
        assert worker.engine.info.id == "fake-other" and await registry.replaced() == {"fake": "fake-other"}


async def test_a_reload_that_jobs_never_let_through_is_given_up(
    queue: JobQueue, leases: LeaseQueue, settings: Settings, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "PATIENCE_S", 0.0)
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as worker:
        await reload_beside_jobs(worker, queue, registry, hold)
        assert "Jobs wait for fake, and no live worker of another FLUID_CHECKPOINT" in worker.heartbeat.note
        await until_async(lambda: _ended(queue))


async def test_a_worker_that_stops_is_not_lost_and_one_that_vanishes_is(leases: LeaseQueue, settings: Settings) -> None:
    """Its heartbeat expired after 5 s, and with it every trace that an alert could see."""
    registry = Registry(leases.redis, settings.namespace)
    async with running(leases, settings) as worker:
        assert set(await registry.last_seen()) == {worker.id}
    assert await registry.last_seen() == {}
    await registry.heartbeat(WorkerInfo("vanished", "ready", "fake", 1, 0, 0.0), {})
    await registry.redis.delete(registry.keys.worker("vanished"), registry.keys.workers_zset)  # as 5 s later
    assert await registry.workers() == []
    assert set(await registry.last_seen()) == {"vanished"}
    await registry.redis.zincrby(registry.keys.last_seen_zset, -601, "vanished")
    assert await registry.last_seen() == {}


async def test_workers_that_crash_in_a_loop_leave_a_bounded_trace(leases: LeaseQueue, settings: Settings) -> None:
    registry = Registry(leases.redis, settings.namespace)
    now = await redis_time(leases.redis)
    crowd = {f"w{i}": now - 100 + i / 100 for i in range(1500)}
    await registry.redis.zadd(registry.keys.last_seen_zset, crowd)
    await registry.heartbeat(WorkerInfo("last", "ready", "fake", 1, 0, 0.0), {})
    seen = await registry.last_seen()
    assert len(seen) == 1000 and "last" in seen and "w1499" in seen
    assert await registry.redis.ttl(registry.keys.last_seen_zset) > 0
