"""Each background task of worker and gateway is killed in turn: it is started again, and one that keeps dying shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest

from server import background
from server.background import Crash
from server.cli import doctor
from server.gateway.app import create_app
from server.gateway.lifespan import open_services
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import Engine
from server.worker.loop import Worker
from tests.server.harness import until_async

pytestmark = pytest.mark.anyio
WORKER_TASKS = ("heartbeat", "lease renewal", "cancel listener", "watchdog", "reloader", "job intake")


def new_worker(leases: LeaseQueue, settings: Settings) -> Worker:
    def factory(checkpoint: str) -> Engine:
        return FakeEngine(4, 0.0, checkpoint)

    return Worker(settings, leases, Registry(leases.redis, settings.namespace), factory)


@pytest.fixture
async def worker(leases: LeaseQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr(background, "BACKOFF_S", (0.01,))
    made = new_worker(leases, replace(settings, step_timeout_s=2.0))
    running = asyncio.create_task(made.run())
    await until_async(lambda: _true(made.heartbeat.state == "ready"))
    yield made
    made.stop()
    async with asyncio.timeout(60):
        await running


async def _true(value: object) -> bool:
    return bool(value)


async def kill(supervisor: background.Supervisor, name: str, times: int) -> None:
    for _ in range(times):
        task = supervisor._tasks[name]
        await background.cancel_and_wait(task)  # redis-py may swallow the first one
        await until_async(lambda task=task: _true(supervisor._tasks[name] is not task))


async def test_each_task_of_a_worker_is_started_again(worker: Worker, queue: JobQueue, settings: Settings) -> None:
    """A reload whose config divided by zero ended the reloader in silence, until the process ended."""
    await until_async(lambda: _true(set(WORKER_TASKS) <= worker.supervisor._tasks.keys()))
    for name in WORKER_TASKS:
        await kill(worker.supervisor, name, 3)
    assert {crash.task for crash in worker.supervisor.failing} == set(WORKER_TASKS)
    assert not worker.taking
    registry = worker.registry
    await worker.heartbeat.beat()
    [seen] = await registry.workers()
    assert seen.state == "failing" and "'lease renewal' has crashed 3 times" in seen.note
    assert (await registry.stats())["fluid_worker_task_crashes_total|reloader|total"] == 3
    found = [
        finding async for finding in doctor.examine(settings, queue, registry) if finding.level is doctor.Level.FAIL
    ]
    assert sum("crashed 3 times" in finding.text for finding in found) >= len(WORKER_TASKS)


async def test_each_task_of_a_gateway_is_started_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BACKOFF_S", (0.01,))
    app = create_app(settings)
    async with open_services(settings) as services:
        app.state.services = services
        names = ("watcher", "sweeper", "webhooks", "batches", "redis")
        await until_async(lambda: _true(set(names) <= services.supervisor._tasks.keys()))
        for name in names:
            await kill(services.supervisor, name, 3)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            ready = await http.get("/health/ready")
            metrics = (await http.get("/metrics")).text
        assert ready.status_code == 503
        for name in names:
            assert f"'{name}' has crashed 3 times in succession" in ready.json()["reason"]
            assert f'fluid_background_failures_total{{task="{name}"}} 3.0' in metrics
        assert len(await services.registry.crashes()) == len(names)


@pytest.mark.parametrize("checkpoint", ["hanging", "missing", "divides"])
async def test_a_reload_that_fails_in_any_way_leaves_the_worker_as_it_was(
    worker: Worker, settings: Settings, checkpoint: str
) -> None:
    """A canary image that hung was never given up, and an unexpected exception ended the reloader."""

    def factory(name: str) -> Engine:
        if name == "divides":
            raise ZeroDivisionError
        return FakeEngine(4, 0.0, name)

    worker._factory = factory
    if checkpoint == "hanging":
        monkey = pytest.MonkeyPatch()
        monkey.setattr("server.worker.engine.fake.HANG_S", 4.0)  # the test's process waits for the thread at its end
    try:
        request = await worker.registry.request_reload(settings.checkpoint, checkpoint)
        await until_async(lambda: _true(worker.heartbeat.reloads == request.number))
    finally:
        with suppress(NameError):
            monkey.undo()
    assert f"reload {request.number} failed" in worker.heartbeat.note
    assert worker.supervisor.failing == [] and worker.taking
    assert worker.hung_thread == (checkpoint == "hanging")


def test_a_crash_tells_no_secret() -> None:
    """The text of an exception may hold a URL with its password; readiness shows the type alone."""
    assert str(Crash("t", "ValueError", 3)) == "the background task 't' has crashed 3 times in succession (ValueError)"
