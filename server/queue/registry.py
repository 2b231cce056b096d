"""The registry of workers in Redis: heartbeats, models, reload requests, and statistics to be scraped."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import cast

from server.background import KEEPS_CRASHING, Crash
from server.model_info import ModelInfo
from server.queue.keys import Keys
from server.queue.redis_client import Client, redis_time
from server.queue.scripts import load_script
from server.records import UNREADABLE, decode, read_json, readable, shallow, skip

HEARTBEAT_S = 1.0
DEAD_AFTER_S = 5.0
LOST_KEPT_S = 600.0  # how long a worker that ended without a word stays visible; alerts need some minutes
MAX_LAST_SEEN = 1000  # workers that crash in a loop leave one entry each
MAX_SERVED = 1000  # pairs of FLUID_CHECKPOINT and model, those of the last heartbeats
#: Models that no worker serves and no job waits for are kept for a worker that is started on demand; past this many,
#: those that were served last. Gateways read all of them twice a second.
MAX_MODELS = 256
MAX_REPLACED = 1000  # ids that reloads have replaced, of which defaults and aliases may name some
STREAMS_KEPT_S = 8.0  # after a gateway counted its open event streams
CRASH_KEPT_S = 30.0  # longer than the longest pause between two crashes of a task


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's heartbeat."""

    id: str
    state: str  #: loading, ready or draining
    model: str
    max_rows: int
    rows: int
    started_at: float
    heartbeat_at: float = 0.0
    note: str = ""
    checkpoint: str = ""  #: SHA-256 of the weights in use
    row_steps_per_s: float = 0.0  #: throughput while busy
    work_left: int = 0  #: row-steps of the held jobs
    kernels: str = ""  #: implementation of the model's innermost loop: torch or triton
    device: str = ""  #: device and precision
    reloads: int = 0  #: number of the last `fluid reload` that it handled
    configured: str = ""  #: FLUID_CHECKPOINT, by which `fluid reload` finds it; "": of an older version

    @property
    def ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True, slots=True)
class CrashReport:
    """The last crash of a background task of a gateway or worker, for `fluid doctor`."""

    process: str
    task: str
    error: str
    in_succession: int
    at: float

    @property
    def keeps_happening(self) -> bool:
        return self.in_succession >= KEEPS_CRASHING


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """A request that workers configured for `configured` use `checkpoint` from now on."""

    configured: str
    checkpoint: str
    number: int


class Registry:
    """Reads and writes the registry. Models persist, so that jobs are accepted while a worker restarts; heartbeats
    expire by themselves."""

    def __init__(self, redis: Client, namespace: str) -> None:
        self.redis = redis
        self.keys = Keys(namespace)

    async def heartbeat(
        self, worker: WorkerInfo, stats: Mapping[str, float], exemplars: Mapping[str, str] | None = None
    ) -> None:
        """Write a heartbeat, and add what the worker counted since the last one."""
        now = await redis_time(self.redis)
        text = json.dumps(shallow(worker) | {"heartbeat_at": now})
        pair = f"{worker.configured}\n{worker.model}"
        served = [("ZADD", self.keys.served_zset, now, pair)] if worker.model else []
        workers, last_seen = self.keys.workers_zset, self.keys.last_seen_zset
        commands: list[tuple[str | float, ...]] = [
            ("SET", self.keys.worker(worker.id), text, "PX", int(DEAD_AFTER_S * 1000)),
            ("SET", self.keys.worker_model(worker.id), worker.model, "EX", int(LOST_KEPT_S + DEAD_AFTER_S)),
            ("ZADD", workers, now, worker.id),
            ("ZREMRANGEBYSCORE", workers, "-inf", now - DEAD_AFTER_S),
            ("ZADD", last_seen, now, worker.id),
            ("ZREMRANGEBYSCORE", last_seen, "-inf", now - LOST_KEPT_S),
            ("ZREMRANGEBYRANK", last_seen, 0, -MAX_LAST_SEEN - 1),
            ("EXPIRE", last_seen, int(LOST_KEPT_S)),
            *served,
            *(("HINCRBYFLOAT", self.keys.stats_hash, name, value) for name, value in stats.items()),
        ]
        if exemplars:
            commands.append(("HSET", self.keys.exemplars_hash, *(text for pair in exemplars.items() for text in pair)))
        await self.redis.transaction_of(commands)  # redis-py takes 100 us for each of the 30 replies

    async def deregister(self, worker_id: str) -> None:
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(self.keys.worker(worker_id), self.keys.worker_model(worker_id))
            pipe.zrem(self.keys.workers_zset, worker_id)
            pipe.zrem(self.keys.last_seen_zset, worker_id)
            await pipe.execute()

    async def workers(self) -> list[WorkerInfo]:
        """The live workers."""
        ids = await self.redis.call("ZRANGE", self.keys.workers_zset, 0, -1)
        if not ids:
            return []
        texts = await self.redis.call("MGET", *(self.keys.worker(i) for i in ids))
        return list(readable("a heartbeat", filter(None, texts), lambda text: decode(WorkerInfo, read_json(text))))

    async def last_seen(self) -> dict[str, float]:
        """Time of the last heartbeat of every live worker, and of those lost within LOST_KEPT_S, by Redis' clock."""
        oldest = await redis_time(self.redis) - LOST_KEPT_S
        found = await self.redis.zrange(self.keys.last_seen_zset, oldest, "+inf", byscore=True, withscores=True)
        return dict(found)

    async def models_of(self, worker_ids: Collection[str]) -> dict[str, str]:
        """The models that these workers served, live or lost; "" for one that never loaded any."""
        keys = [self.keys.worker_model(each) for each in worker_ids]
        models = await self.redis.mget(keys) if keys else []
        return {worker: model or "" for worker, model in zip(worker_ids, models, strict=True)}

    async def publish_model(self, info: ModelInfo, replaces: str = "") -> None:
        """Publish a model; `replaces` is the id that a reload gave up for it, if it is another one.

        Models and replaced ids beyond MAX_MODELS and MAX_REPLACED are forgotten, but no model that a worker serves or a
        job waits for, or runs with.
        """
        args = {"id": info.id, "info": info.to_json(), "live_s": 2 * DEAD_AFTER_S, "away_s": LOST_KEPT_S}
        args |= {"max_models": MAX_MODELS, "max_replaced": MAX_REPLACED, "max_served": MAX_SERVED}
        if replaces not in ("", info.id):
            args["replaces"] = replaces
        await self.redis.call("EVAL", load_script("publish_model"), 1, self.keys.root, json.dumps(args))

    async def forget_models(self, ids: Collection[str]) -> None:
        """Take models off the list until a worker publishes them again; what has replaced them is still known."""
        if ids:
            await self.redis.hdel(self.keys.models_hash, *ids)

    async def replaced(self) -> dict[str, str]:
        """The model that a reload put in the place of another, by the other's id."""
        return cast("dict[str, str]", await self.redis.hgetall(self.keys.replaced_hash))

    async def last_served(self) -> dict[str, float]:
        """When each model had its last heartbeat, by Redis' clock, as far as that is known."""
        found = await self.redis.zrange(self.keys.served_zset, 0, -1, withscores=True)
        return {pair.rpartition("\n")[2]: at for pair, at in found}

    async def _expected_back(self) -> set[str]:
        """The models that the workers of each FLUID_CHECKPOINT served last, within LOST_KEPT_S."""
        oldest = await redis_time(self.redis) - LOST_KEPT_S
        found = await self.redis.zrange(self.keys.served_zset, oldest, "+inf", byscore=True)
        return set(dict(pair.rpartition("\n")[::2] for pair in found).values())

    async def current_models(self, workers: Iterable[WorkerInfo], replaced: Mapping[str, str]) -> dict[str, ModelInfo]:
        """The published models without those that a reload has replaced everywhere: none of `workers` serves them, nor
        is a worker with another FLUID_CHECKPOINT expected back that did."""
        models = await self.models()
        gone = (replaced.keys() & models.keys()) - {worker.model for worker in workers}
        if gone:
            gone -= await self._expected_back()
        return {name: info for name, info in models.items() if name not in gone}

    async def published(self, model: str) -> ModelInfo | None:
        text = await self.redis.call("HGET", self.keys.models_hash, model)
        found = readable("a model", [text] if text else [], _model)
        return next(found, None)

    async def rival(self, worker_id: str, info: ModelInfo) -> WorkerInfo | None:
        """Another worker, to which the id of `info` belongs: a ready one with the published checkpoint, not this one.

        So an id belongs to one checkpoint at a time: to the one published last, while a worker serves it.
        """
        published = await self.published(info.id)
        if published is None or published.checkpoint_sha256 == info.checkpoint_sha256:
            return None
        for worker in await self.workers():
            same_id = worker.ready and worker.model == info.id and worker.id != worker_id
            if same_id and worker.checkpoint == published.checkpoint_sha256:
                return worker
        return None

    async def models(self) -> dict[str, ModelInfo]:
        """Every published model."""
        found = readable("a model", await self.redis.call("HVALS", self.keys.models_hash), _model)
        return {info.id: info for info in found}

    async def report_crash(self, process: str, crash: Crash) -> None:
        report = CrashReport(process, crash.task, crash.error, crash.in_succession, await redis_time(self.redis))
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(self.keys.crashes_hash, f"{process} {crash.task}", json.dumps(asdict(report)))
            pipe.expire(self.keys.crashes_hash, int(CRASH_KEPT_S))
            await pipe.execute()

    async def crashes(self) -> list[CrashReport]:
        """Crashes of the last CRASH_KEPT_S."""
        raw = await self.redis.hvals(self.keys.crashes_hash)
        found = readable("a crash report", raw, lambda text: decode(CrashReport, read_json(text)))
        oldest = await redis_time(self.redis) - CRASH_KEPT_S
        return [report for report in found if report.at > oldest]

    async def report_streams(self, process: str, by_owner: Mapping[str, int]) -> None:
        """Write how many event streams are open on a gateway, by owner."""
        now = await redis_time(self.redis)
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.set(self.keys.streams(process), json.dumps(by_owner), px=int(STREAMS_KEPT_S * 1000))
            pipe.zadd(self.keys.streams_zset, {process: now})
            pipe.zremrangebyscore(self.keys.streams_zset, "-inf", now - STREAMS_KEPT_S)
            await pipe.execute()

    async def streams(self) -> Counter[str]:
        """Open event streams of all gateways, by owner."""
        processes = await self.redis.zrange(self.keys.streams_zset, 0, -1)
        texts = await self.redis.mget([self.keys.streams(each) for each in processes]) if processes else []
        return sum(readable("open streams", filter(None, texts), _counts), Counter())

    async def request_reload(self, configured: str, checkpoint: str) -> ReloadRequest:
        number = await self.redis.hincrby(self.keys.reloads_hash, "number", 1)
        newest = max((worker.reloads for worker in await self.workers()), default=0)
        if number <= newest:  # a failover has lost the last requests, and workers would ignore a number that they had
            number = await self.redis.hincrby(self.keys.reloads_hash, "number", newest - number + 1)
        await self.redis.hset(self.keys.reloads_hash, f"checkpoint:{configured}", f"{number} {checkpoint}")
        return ReloadRequest(configured, checkpoint, number)

    async def reload_request(self, configured: str) -> ReloadRequest | None:
        """The last reload request for `configured`, if any."""
        return await self._reload("checkpoint", configured)

    async def last_reload(self, configured: str) -> ReloadRequest | None:
        """The last request that a worker has carried out: what its checkpoint is now, also after a restart."""
        return await self._reload("done", configured)

    async def begin_reload(self, request: ReloadRequest) -> None:
        """Note that a worker tries this request, before it may take the worker's process with it."""
        await self.redis.hset(self.keys.reloads_hash, f"begun:{request.configured}", request.number)

    async def begun_reload(self, configured: str) -> int:
        """Number of the last request that any worker has tried."""
        text = await self.redis.hget(self.keys.reloads_hash, f"begun:{configured}")
        return int(text) if text and text.isdecimal() else 0

    async def finish_reload(self, request: ReloadRequest, info: ModelInfo, replaces: str = "") -> None:
        """Publish what a request has loaded, and note that it was carried out; an older one changes no later start.

        `replaces` is the id of the model that the worker served before.
        """
        await self.publish_model(info, replaces)
        last = await self.last_reload(request.configured)
        if last is None or last.number < request.number:
            text = f"{request.number} {request.checkpoint}"
            await self.redis.hset(self.keys.reloads_hash, f"done:{request.configured}", text)

    async def _reload(self, field: str, configured: str) -> ReloadRequest | None:
        text = await self.redis.call("HGET", self.keys.reloads_hash, f"{field}:{configured}")
        if not text:
            return None
        number, _, checkpoint = text.partition(" ")
        try:
            return ReloadRequest(configured, checkpoint, int(number))
        except UNREADABLE as error:
            skip("a reload request", error)
            return None

    async def exemplars(self) -> dict[str, str]:
        """ "TRACE VALUE TIME" of a recent traced observation, by bucket of a histogram."""
        return cast("dict[str, str]", await self.redis.hgetall(self.keys.exemplars_hash))

    async def stats(self) -> dict[str, float]:
        raw = cast("dict[str, str]", await self.redis.hgetall(self.keys.stats_hash))
        return dict(readable("a statistic", raw.items(), lambda item: (item[0], float(item[1]))))


@lru_cache(maxsize=MAX_MODELS)  # read twice a second by gateways, and seldom changed
def _model(text: str) -> ModelInfo:
    return ModelInfo.from_mapping(read_json(text))


def _counts(text: str) -> Counter[str]:
    return Counter({owner: int(number) for owner, number in json.loads(text).items()})
