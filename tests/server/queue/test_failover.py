"""Failovers with real processes: a replica that lacks the last writes takes over, and connections go silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError

from benchmarks.chaos.redis_pair import RedisPair
from server.cli.demo import free_port
from server.jobs import JobState, Lease, Output
from server.model_info import ModelInfo
from server.queue.connection import subscription
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import GATEWAY_SOCKET_TIMEOUT_S, SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry, WorkerInfo
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE, FakeEngine
from tests.server.harness import MODEL, Service, accept, take, until
from tests.server.queue.test_watcher import watching

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    with RedisPair(tmp_path) as running:
        yield running


def pair_settings(pair: RedisPair) -> Settings:
    return Settings(redis_url=pair.url, engine=FAKE_ENGINE, lease_s=1.0, port=free_port())


@pytest.fixture
async def ours(pair: RedisPair) -> AsyncIterator[JobQueue]:
    async with connect(pair.url, SOCKET_TIMEOUT_S) as redis:
        await Registry(redis, "fluid").publish_model(ModelInfo.from_mapping(FakeEngine(1, 0).info()))
        yield JobQueue(redis, pair_settings(pair))


@pytest.fixture
async def zombie_leases(pair: RedisPair) -> AsyncIterator[LeaseQueue]:
    """A worker with connections of its own."""
    async with connect(pair.url, SOCKET_TIMEOUT_S) as redis:
        yield LeaseQueue(redis, pair_settings(pair))


def output_of(lease: Lease, index: int = 0) -> Output:
    return Output(index, 7 + index, 32, 32, "png", 4, "00", token=lease.token)


async def test_no_two_leases_share_a_token_after_a_failover(
    pair: RedisPair, ours: JobQueue, zombie_leases: LeaseQueue
) -> None:
    """Tokens were counted in Redis: a replica without the last second counted the same ones again, and the late write
    of the first holder replaced the image that the second had made visible."""
    leases = LeaseQueue(ours.redis, pair_settings(pair))
    await accept(ours, "a", n=2)
    await asyncio.to_thread(pair.wait_until_synced)
    pair.lag()
    zombie = await take(zombie_leases, "w1")
    await zombie_leases.store_result(zombie, 0, b"half")
    await asyncio.to_thread(pair.promote)
    heir = await take(leases, "w2")
    assert (heir.job_id, heir.attempt) == (zombie.job_id, zombie.attempt) and heir.token != zombie.token
    await leases.store_result(heir, 0, b"good")
    done = [output_of(heir), output_of(heir, 1)]
    assert await leases.finish(heir, JobState.SUCCEEDED, outputs=done, files={1: b"good"})
    await zombie_leases.store_result(zombie, 0, b"late")
    late = [output_of(zombie), output_of(zombie, 1)]
    assert not await zombie_leases.finish(zombie, JobState.SUCCEEDED, outputs=late, files={1: b"late"})
    record = await ours.get("a")
    assert [await ours.result(record, output) for output in record.outputs] == [b"good", b"good"]


async def test_an_image_that_a_failover_lost_is_generated_again(
    pair: RedisPair, ours: JobQueue, zombie_leases: LeaseQueue
) -> None:
    """The lease was older than the lost second, one of its files was not: the job succeeded with a missing image."""
    await accept(ours, "a", n=2)
    lease = await take(zombie_leases)
    await asyncio.to_thread(pair.wait_until_synced)
    pair.lag()
    await zombie_leases.store_result(lease, 0, b"lost")
    await zombie_leases.save(lease, "sha", snapshots={}, outputs=[output_of(lease)])
    await asyncio.to_thread(pair.promote)
    outputs = [output_of(lease), output_of(lease, 1)]
    assert not await zombie_leases.finish(lease, JobState.SUCCEEDED, outputs=outputs, files={1: b"here"})
    assert await zombie_leases.redis.hget(ours.keys.job_hash("a"), "state") == JobState.QUEUED
    again = await take(zombie_leases)
    assert (await zombie_leases.resume(again, "sha")).outputs == {}


async def test_a_reload_after_a_failover_has_a_new_number(pair: RedisPair, ours: JobQueue) -> None:
    """The counter repeats: workers ignored the next `fluid reload`, because they had carried out that number."""
    registry = Registry(ours.redis, "fluid")
    await asyncio.to_thread(pair.wait_until_synced)
    pair.lag()
    first = await registry.request_reload("c", "d")
    await asyncio.to_thread(pair.promote)
    await registry.heartbeat(WorkerInfo("w", "ready", MODEL, 1, 0, 1.0, reloads=first.number), {})
    assert (await registry.request_reload("c", "e")).number > first.number


async def test_a_demoted_primary_is_left_at_once(pair: RedisPair, ours: JobQueue) -> None:
    """Connections outlived the failover: gateway and worker stayed with the demoted primary, as long as watched."""
    await asyncio.gather(*(ours.redis.ping() for _ in range(8)))  # eight connections to it
    async with watching(ours, "fluid") as watcher:
        with watcher.expect("a") as expected:
            await asyncio.to_thread(pair.promote)
            await accept(ours, "a")  # the very first write
            waiting = asyncio.create_task(expected.end(60))
            assert await ours.redis.get("none") is None
            assert pair.primary.command("EXISTS", ours.keys.job_hash("a")) == 1
            await ours.cancel("a")
            assert (await waiting).state is JobState.CANCELED
    names = str(pair.replica.command("CLIENT", "LIST", "TYPE", "NORMAL")).count("cmd=evalsha")
    assert names == 0, "a connection to the demoted primary was kept"


async def test_a_replica_that_stays_one_is_told(pair: RedisPair) -> None:
    """Without a new primary the reason stays the true one, and comes within the gateway's second."""
    async with connect(f"unix://{pair.replica.socket}", GATEWAY_SOCKET_TIMEOUT_S) as redis:
        began = time.monotonic()
        with pytest.raises(ResponseError, match="read only"):
            await redis.set("x", "y")
        assert time.monotonic() - began < 10


async def test_an_idle_gateway_leaves_a_demoted_primary(pair: RedisPair, ours: JobQueue) -> None:
    """It only read, and reads of a replica succeed: it showed a stale queue until the next request."""
    await asyncio.gather(*(ours.redis.ping() for _ in range(4)))  # one of them will be the subscription's
    async with watching(ours, "fluid"):
        before = ours.redis.get_retry().demotions
        await asyncio.to_thread(pair.promote)
        async with asyncio.timeout(60):
            while ours.redis.get_retry().demotions == before:
                await asyncio.sleep(0.05)


async def test_a_replica_is_not_believed_that_there_is_no_such_job(
    pair: RedisPair, ours: JobQueue, zombie_leases: LeaseQueue
) -> None:
    """A gateway that had only read since a failover answered 404 for a job, and for an image, that its replica had not
    received yet: on a starved machine chaos counted four as lost."""
    async with connect(pair.url, SOCKET_TIMEOUT_S) as redis, connect(pair.url, SOCKET_TIMEOUT_S) as other:
        late = JobQueue(other, pair_settings(pair))
        await asyncio.gather(ours.redis.call("PING"), other.call("PING"))  # both have a connection to it
        await asyncio.to_thread(pair.promote)
        await asyncio.to_thread(pair.wait_until_synced)
        pair.lag()
        current = JobQueue(redis, pair_settings(pair))
        await accept(current, "a", n=2)
        lease = await take(zombie_leases)
        await zombie_leases.store_result(lease, 0, b"first")
        outputs = [output_of(lease), output_of(lease, 1)]
        assert await zombie_leases.finish(lease, JobState.SUCCEEDED, outputs=outputs, files={1: b"second"})
        record = await ours.get("a")
        assert record.state is JobState.SUCCEEDED
        assert [await late.result(record, output) for output in record.outputs] == [b"first", b"second"]


async def test_a_silent_subscription_is_noticed(
    pair: RedisPair, ours: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked like a quiet one: every wait took the fallback second, and streams 15 s, until a restart."""
    monkeypatch.setattr(subscription, "PING_AFTER_S", 0.3)
    monkeypatch.setattr(subscription, "ECHO_S", 0.3)
    async with watching(ours, "elsewhere") as watcher, connect(pair.url, SOCKET_TIMEOUT_S) as other:
        await asyncio.to_thread(lambda: until(lambda: _subscribers(pair), what="the subscription"))
        pair.address.silence()
        with watcher.follow("a") as changed:
            async with asyncio.timeout(60):
                while not changed.is_set():
                    await other.publish("{elsewhere}:job_updated", "a")
                    await asyncio.sleep(0.05)


def _subscribers(pair: RedisPair) -> int:
    return str(pair.primary.command("CLIENT", "LIST", "TYPE", "PUBSUB")).count("cmd=subscribe")


async def test_a_subscription_does_not_stay_with_a_former_primary(
    pair: RedisPair, ours: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written through a subscription, so no READONLY tells it. It answered every ping, and heard nothing."""
    monkeypatch.setattr(subscription, "PING_AFTER_S", 0.3)
    monkeypatch.setattr(subscription, "ECHO_S", 0.3)
    async with watching(ours, "elsewhere") as watcher, connect(pair.url, SOCKET_TIMEOUT_S) as other:
        await asyncio.to_thread(lambda: until(lambda: _subscribers(pair), what="the subscription"))
        await asyncio.to_thread(pair.promote)
        pair.replica.command("REPLICAOF", "NO", "ONE")  # what the new primary publishes does not come here
        with watcher.follow("a") as changed:
            async with asyncio.timeout(60):
                while not changed.is_set():
                    await other.publish("{elsewhere}:job_updated", "a")
                    await asyncio.sleep(0.05)


async def test_one_silent_connection_costs_one_timeout(pair: RedisPair) -> None:
    """After a firewall had forgotten them, each connection of the pool cost a caller its timeout."""
    async with connect(pair.url, 2.0) as redis:
        await asyncio.gather(*(redis.ping() for _ in range(8)))
        pair.address.silence()
        failed = 0
        for _ in range(8):
            try:
                await redis.ping()
            except RedisError:
                failed += 1
        assert failed <= 1


def test_the_service_survives_a_failover(pair: RedisPair) -> None:
    """Gateway and worker move to the new primary by themselves, and an image of the old one stays the same."""
    service = Service(pair_settings(pair))
    try:
        service.add_worker()
        service.client.wait_ready(timeout_s=60)
        before = service.client.generate("a cat", seed=3)[0]
        pair.wait_until_synced()
        pair.promote()
        after = until(lambda: _generated(service), what="an image after the failover")
        assert after == before.data
        assert pair.primary.command("ZCARD", "{fluid}:ended") == 2
    finally:
        service.close()


def _generated(service: Service) -> bytes | None:
    try:
        return service.client.generate("a cat", seed=3)[0].data
    except Exception:
        return None
