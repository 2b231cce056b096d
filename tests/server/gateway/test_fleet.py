"""What a gateway lists, and gives to requests, once reloads have replaced models and workers are away."""

from __future__ import annotations

import itertools
import json

import pytest

from server.errors import UnknownModel
from server.gateway.batches.files import FileStore
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.resolve import model_of
from server.gateway.schemas.images import ImageRequest
from server.model_info import ModelInfo
from server.queue import registry as bounds
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import redis_time
from server.queue.registry import Registry, WorkerInfo
from server.queue.statistics import unserved_models
from server.worker.engine.fake import FakeEngine
from tests.server.harness import accept

pytestmark = pytest.mark.anyio
A, B = "fake-a", "fake-b"
ALIASES = ClientMapping({"dall-e-3": A, "gpt-image-1": B})


def info(model: str) -> ModelInfo:
    return ModelInfo.from_mapping(FakeEngine(1, 0, model).info())


@pytest.fixture
def registry(queue: JobQueue) -> Registry:
    return Registry(queue.redis, queue.keys.namespace)


async def beat(registry: Registry, worker: str, model: str, configured: str) -> None:
    await registry.heartbeat(WorkerInfo(worker, "ready", model, 1, 0, 0.0, configured=configured), {})


async def replace_a(registry: Registry, *configured: str) -> None:
    """A worker of each FLUID_CHECKPOINT serves A; the first one is reloaded to B, and the others stop for a moment."""
    await registry.publish_model(info(A))
    for each in configured:
        await beat(registry, each, A, each)
    await registry.publish_model(info(B), replaces=A)
    await beat(registry, configured[0], B, configured[0])
    for each in configured[1:]:
        await registry.deregister(each)


async def test_a_model_stays_while_its_other_worker_restarts(registry: Registry) -> None:
    """For the seconds without a heartbeat of the worker that no reload had concerned, its model got 404."""
    await replace_a(registry, "a", "also-a")
    fleet = Fleet(registry, A, ALIASES)
    assert {A, B} <= (await fleet.models()).keys() and await fleet.default_model() == A
    assert fleet.warnings == [] and fleet.mapping == ALIASES
    await registry.redis.zincrby(registry.keys.served_zset, -bounds.LOST_KEPT_S, f"also-a\n{A}")  # it never returned
    fleet = Fleet(registry, A, ALIASES)
    assert A not in await fleet.models() and await fleet.default_model() == B


async def test_a_worker_that_dies_before_its_reload_does_not_keep_the_old_model(registry: Registry) -> None:
    """Its next start loads what the reload has brought: the old model is expected from no one."""
    await replace_a(registry, "a")
    await beat(registry, "second", A, "a")
    await registry.deregister("second")
    await beat(registry, "a", B, "a")
    assert A not in await Fleet(registry).models()


async def test_aliases_follow_a_reload_as_the_default_does(registry: Registry) -> None:
    """Requests for dall-e-3 got 404 from the reload on, while those without a model got the new one."""
    await replace_a(registry, "a")
    fleet = Fleet(registry, "dall-e-3", ALIASES)
    models, default = await fleet.models(), await fleet.default_model()
    for name in ("dall-e-3", ""):
        assert model_of(ImageRequest(prompt="x", model=name), models, default, fleet.mapping).id == B
    with pytest.raises(UnknownModel):
        model_of(ImageRequest(prompt="x", model=A), models, default, fleet.mapping)
    assert fleet.warnings == [
        f"a reload has replaced dall-e-3, the FLUID_DEFAULT_MODEL: requests without 'model' get {B}",
        f"a reload has replaced {A}, the dall-e-3 of FLUID_MODEL_ALIASES: it stands for {B}",
    ]


async def test_lines_of_a_batch_follow_a_reload_that_came_later(queue: JobQueue, registry: Registry) -> None:
    """A batch waits for hours: its lines for a model that was served when it came were rejected one by one with 404."""
    files = FileStore(queue, 3600)
    store = BatchStore(queue, files, 3600)
    runner = BatchRunner(queue, Fleet(registry), files, store, 3600, GatewayMetrics().bugs)
    url, bodies = "/v1/images/generations", [{"prompt": "a cat", "model": A}, {"prompt": "a cat", "model": "c"}]
    lines = [{"custom_id": str(n), "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)]
    file = await files.add("", "in.jsonl", "batch", "\n".join(map(json.dumps, lines)).encode())
    early = await store.create("", file.id, None, "")
    await replace_a(registry, "a")
    for _ in range(2):
        await runner.advance(early.id)
    assert (await queue.get(early.job_id(0))).input.model == B
    assert (await store.get("", early.id)).rejected == 1, "the unknown one"
    await registry.redis.zincrby(registry.keys.served_zset, -4, f"a\n{A}")
    late = await store.create("", file.id, None, "")
    for _ in range(2):
        await runner.advance(late.id)
    assert (await store.get("", late.id)).rejected == 2, "as a request of its own would be"


async def test_models_and_replaced_ids_are_bounded(
    registry: Registry, queue: JobQueue, leases: LeaseQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reload to a new id left two entries for good, which every gateway read twice a second."""
    monkeypatch.setattr(bounds, "MAX_MODELS", 6)
    monkeypatch.setattr(bounds, "MAX_REPLACED", 3)
    keys, now = registry.keys, await redis_time(queue.redis)
    names = [f"fake-{number}" for number in range(10)]
    await queue.redis.zadd(keys.served_zset, {f"c\n{each}": now - 10_000 + n for n, each in enumerate(names)})
    for old, new in itertools.pairwise(names):
        await registry.publish_model(info(old))
        await registry.publish_model(info(new), replaces=old)
    assert await registry.replaced() == {"fake-6": "fake-7", "fake-7": "fake-8", "fake-8": "fake-9"}
    assert (await registry.models()).keys() == {"fake", "fake-9"}, "a reload took the others"
    await accept(queue, "waits", model="fake-0")
    await accept(queue, "runs", model="fake-1")
    assert await leases.take("w1", "fake-1") is not None
    await beat(registry, "w2", "fake-2", "d")
    assert await queue.redis.zrem(keys.served_zset, "d\nfake-2") == 1  # as a worker of an earlier version
    for each in (*names[:6], "fake-new"):
        await registry.publish_model(info(each))
    needed = {"fake-0", "fake-1", "fake-2"}
    assert (await registry.models()).keys() == needed | {"fake-5", "fake-9", "fake-new"}, "those served last"


async def test_a_model_whose_job_runs_is_needed(registry: Registry, queue: JobQueue, leases: LeaseQueue) -> None:
    """`fluid forget`, and a start of `fluid serve`, took it away; when a dead worker's lease ends, its job waits."""
    await accept(queue, "job")
    assert await unserved_models(queue, registry) == []
    assert await leases.take("w1", "fake") is not None
    assert await unserved_models(queue, registry) == []
    assert await queue.cancel("job") is not None
    await leases.redis.zadd(queue.keys.leases_zset("fake"), {"job": 0})
    await leases.reclaim("w2", "fake", [], count=10)
    assert await unserved_models(queue, registry) == ["fake"]
