"""FLUID_REPLICAS with a real primary and replica: a 2xx means that both have the request on disk."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.chaos.redis_pair import RedisPair
from server.cli.demo import free_port
from server.cli.doctor import examine
from server.errors import NotReplicated
from server.jobs import JobState
from server.launcher.embedded_valkey import EmbeddedValkey
from server.model_info import ModelInfo
from server.queue.job_queue import JobQueue, Outcome, Submission
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect, find_problems
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE, FakeEngine
from tests.server.harness import Service, accept, job_input, until

pytestmark = pytest.mark.anyio
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}\n'


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    with RedisPair(tmp_path) as running:
        yield running


def settings_of(url: str, timeout_s: float = 10.0) -> Settings:
    return Settings(redis_url=url, engine=FAKE_ENGINE, replicas=1, replica_timeout_s=timeout_s, port=free_port())


@pytest.fixture
async def queue(pair: RedisPair) -> AsyncIterator[JobQueue]:
    async with connect(pair.url, SOCKET_TIMEOUT_S) as redis:
        yield JobQueue(redis, settings_of(pair.url))


def calls(pair: RedisPair, name: str) -> int:
    found = pair.primary.command("INFO", "commandstats")
    assert isinstance(found, dict)
    return int(found.get(f"cmdstat_{name}", {"calls": 0})["calls"])


async def test_what_was_accepted_survives_its_primary(pair: RedisPair, queue: JobQueue) -> None:
    """The primary dies with its disk right after the last 2xx; many requests at once share a few waits."""
    before = calls(pair, "set")
    ids = [f"job-{number}" for number in range(60)]
    await asyncio.gather(*(accept(queue, job_id) for job_id in ids))
    waits = calls(pair, "set") - before
    assert pair.primary.process is not None
    pair.primary.process.kill()
    pair.primary.process.wait()
    shutil.rmtree(pair.primary.data_dir)
    pair.replica.close()  # and the replica's machine restarts: its disk is all that is left
    pair.replica.start()
    kept = [pair.replica.command("EXISTS", queue.keys.job_hash(job_id)) for job_id in ids]
    assert kept == [1] * len(ids)
    assert waits <= len(ids) // 4, "a wait of its own for every job"


@pytest.mark.slow
def test_without_a_replica_nothing_is_accepted(pair: RedisPair) -> None:
    """503 not_replicated; the job is canceled, or found by a retry that can name it, once the replica has it."""
    service = Service(settings_of(pair.url, timeout_s=1.0))
    try:
        asyncio.run(_publish_model(pair.url))
        pair.replica.command("REPLICAOF", "NO", "ONE")
        with httpx.Client(base_url=service.settings.base_url, trust_env=False) as http:
            until(lambda: _status(http) == 200, what="the gateway")
            body, named = {"prompt": "a cat"}, {"Idempotency-Key": "k"}
            unnamed = http.post("/v1/jobs", json=body)
            assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (503, "not_replicated")
            assert "Retry-After" in unnamed.headers and "FLUID_REPLICAS" in unnamed.text
            assert [job["status"] for job in http.get("/v1/jobs").json()["data"]] == [JobState.CANCELED]
            assert http.post("/v1/jobs", json=body, headers=named).status_code == 503
            assert http.put("/v1/jobs/mine-0001", json=body).status_code == 503
            uploaded = http.post("/v1/files", files={"file": LINE}, data={"purpose": "batch"})
            assert uploaded.status_code == 503 and http.get("/v1/files").json()["data"] == []
            rejected = 'fluid_jobs_rejected_total{reason="not_replicated"} 4.0'
            assert rejected in http.get("/metrics").text, "with PUT, which was not counted"
            again = http.post("/v1/jobs", json=body, headers=named)
            assert again.status_code == 503, "found again, but no replica has it yet"
            pair._follow()
            pair.wait_until_synced()
            accepted = until(lambda: _accepted(http, body, named), what="the replica")
            assert http.get(f"/v1/jobs/{accepted}").json()["status"] == JobState.QUEUED
            assert http.put("/v1/jobs/mine-0001", json=body).is_success
            assert len(http.get("/v1/jobs").json()["data"]) == 3, "a retry made a second job"
            file = http.post("/v1/files", files={"file": LINE}, data={"purpose": "batch"}).json()
            batch = {"input_file_id": file["id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
            assert http.post("/v1/batches", json=batch).is_success
            pair.replica.command("REPLICAOF", "NO", "ONE")
            lost = until(lambda: _refused(http, batch), what="a batch without a replica")
            assert lost["code"] == "not_replicated" and "batch was canceled" in lost["message"]
            pair._follow()
            states = {"cancelled", "in_progress"}
            until(lambda: {each["status"] for each in http.get("/v1/batches").json()["data"]} == states)
    finally:
        service.close()


async def _publish_model(url: str) -> None:
    async with connect(url, SOCKET_TIMEOUT_S) as redis:
        await Registry(redis, "fluid").publish_model(ModelInfo.from_mapping(FakeEngine(1, 0).info()))


def _status(http: httpx.Client) -> int:
    try:
        return http.get("/health/live").status_code
    except httpx.TransportError:
        return 0


def _refused(http: httpx.Client, batch: dict[str, str]) -> dict[str, str] | None:
    response = http.post("/v1/batches", json=batch)
    return None if response.is_success else dict(response.json()["error"])


def _accepted(http: httpx.Client, body: dict[str, str], headers: dict[str, str]) -> str | None:
    response = http.post("/v1/jobs", json=body, headers=headers)
    return str(response.json()["id"]) if response.is_success else None


async def test_a_redis_that_cannot_promise_it_is_told(pair: RedisPair, queue: JobQueue) -> None:
    """Without an append-only file WAITAOF is an error; a replica that keeps none never confirms."""
    assert [each for each in await find_problems(queue.redis, "probe", queue.replicated) if each.severe] == []
    found = [each async for each in examine(settings_of(pair.url), queue, Registry(queue.redis, "fluid"))]
    assert any("on the disk of a replica" in each.text for each in found)
    pair.primary.command("CONFIG", "SET", "appendonly", "no")
    with pytest.raises(NotReplicated, match="append-only"):
        await accept(queue, "a")
    [problem, *_] = await find_problems(queue.redis, "probe", queue.replicated)
    assert problem.severe and "FLUID_REPLICAS" in problem.text and "appendonly yes" in problem.remedy


async def test_before_redis_7_2_the_replicas_memory_counts(tmp_path: Path) -> None:
    class OldNode(EmbeddedValkey):
        def _options(self) -> list[str]:
            return [*super()._options(), "--rename-command", "WAITAOF", ""]

    with OldNode(tmp_path) as old:
        async with connect(old.url, SOCKET_TIMEOUT_S) as redis:
            queue = JobQueue(redis, settings_of(old.url, timeout_s=0.05))
            with pytest.raises(NotReplicated, match="0 of 1 replicas"):
                await accept(queue, "a")
            found = await find_problems(redis, "probe", queue.replicated)
            assert [each.severe for each in found if "FLUID_REPLICAS" in each.text] == [True, False]


async def test_an_edit_whose_image_a_failover_lost_is_not_accepted(pair: RedisPair, queue: JobQueue) -> None:
    """The image was stored on the former primary, and the job accepted by the new one, which lacks the image."""
    submission = Submission("a", job_input(), "sync", source=b"packed")
    with pytest.raises(NotReplicated, match="lost the request's image"):
        await queue._enqueue(submission)
    assert (await queue.enqueue(submission)).outcome is Outcome.NEW
