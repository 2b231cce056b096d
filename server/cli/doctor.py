"""`fluid doctor`: is the service well, do its books balance, and what to do about it if not."""

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.exceptions import RedisError, ResponseError

from server.queue.job_queue import JobQueue
from server.queue.registry import BEAT_S, Registry, WorkerInfo
from server.queue.statistics import QueueCounts, queue_counts
from server.settings import Settings

OLDEST_REDIS = (7, 0)
LOW_DISK_BYTES = 1 << 30
LONG_WAIT_S = 60.0


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is empty where nothing is wrong."""

    level: Level
    what: str
    remedy: str = ""


async def examine(settings: Settings, queue: JobQueue, registry: Registry) -> AsyncIterator[Finding]:
    """From the ground up; stops where nothing above can be told."""
    try:
        info = await queue.redis.info()
    except RedisError as error:
        yield Finding(
            Level.FAIL,
            f"Redis at {settings.redis_url} does not answer: {error}",
            "Start it, or set FLUID_REDIS_URL to the right address; `fluid serve` starts an embedded one.",
        )
        return
    for finding in _redis(info, await _config(queue)):
        yield finding
    if settings.data_path.exists():
        yield _disk(settings)
    counts = await queue_counts(queue)
    workers = await registry.workers()
    for finding in (*books(counts), *_workers(workers), *_lines(counts, workers), *_failures(counts)):
        yield finding


async def _config(queue: JobQueue) -> dict[str, str]:
    """Managed services often forbid to look."""
    try:
        return dict(await queue.redis.config_get("append*", "maxmemory-policy"))
    except ResponseError:
        return {}


def _redis(info: dict[str, Any], config: dict[str, str]) -> Iterator[Finding]:
    version = str(info["redis_version"])
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', version)}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield Finding(Level.FAIL, f"{name} is too old", "Use Redis 7.0 or later, or Valkey.")
    else:
        yield Finding(Level.OK, f"{name} answers")
    if not config:
        yield Finding(Level.WARN, "Redis does not tell how it keeps data", "Ask its operator for appendfsync always.")
        return
    if config.get("appendonly") != "yes":
        yield Finding(
            Level.FAIL,
            "Redis keeps jobs in memory only: its end is theirs",
            "CONFIG SET appendonly yes, and appendfsync always.",
        )
    elif config.get("appendfsync") != "always":
        yield Finding(
            Level.WARN,
            f"appendfsync is {config.get('appendfsync')}: a crash of Redis' host loses about a second of accepted jobs",
            "CONFIG SET appendfsync always.",
        )
    else:
        yield Finding(Level.OK, "every accepted job is on disk before its 2xx (appendfsync always)")
    if config.get("maxmemory-policy", "noeviction") != "noeviction":
        yield Finding(
            Level.FAIL,
            f"maxmemory-policy {config['maxmemory-policy']} lets Redis drop jobs",
            "CONFIG SET maxmemory-policy noeviction.",
        )


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.data_path).free
    text = f"{free / 2**30:.1f} GiB free at {settings.data_path}"
    if free < LOW_DISK_BYTES:
        return Finding(Level.WARN, text, "Free some space: without it nothing can be accepted.")
    return Finding(Level.OK, text)


def books(counts: QueueCounts) -> Iterator[Finding]:
    """Conservation, counted in two ways: by the counters that transitions move, and in the structures themselves."""
    submitted, queued = sum(counts.submitted.values()), counts.states["queued"]
    sums = " + ".join(f"{n} {state}" for state, n in counts.states.items() if n) or "0"
    pairs = [
        (f"{submitted} submitted = {sums}", submitted, queued + counts.running + counts.ended),
        (f"{queued} queued, {sum(counts.waiting.values())} in line", queued, sum(counts.waiting.values())),
        (f"{counts.running} running, {counts.leases} leases", counts.running, counts.leases),
        (
            f"{counts.ended} ended = {counts.kept} kept + {counts.expired} expired",
            counts.ended,
            counts.kept + counts.expired,
        ),
    ]
    for text, one, other in pairs:
        if one == other:
            yield Finding(Level.OK, text)
        else:
            yield Finding(
                Level.FAIL,
                f"the books do not balance: {text}",
                "Somebody else wrote under this FLUID_NAMESPACE, or this is a bug: please report it with this output.",
            )


def _workers(workers: list[WorkerInfo]) -> Iterator[Finding]:
    if not workers:
        yield Finding(Level.FAIL, "no live worker", "Start `fluid serve`, or `fluid worker` with this FLUID_REDIS_URL.")
    for w in workers:
        text = f"worker {w.id}: {w.state}, {w.model or 'no model yet'}, {w.rows} of {w.max_rows} rows"
        if w.note:
            yield Finding(Level.WARN, f"{text}; {w.note}", "Its log tells more.")
        elif w.ready:
            speed = f"{w.row_steps_per_s:.0f} row-steps/s"
            yield Finding(Level.OK, f"{text}, {speed}, {w.kernels} kernels on {w.device}")
        else:
            yield Finding(Level.WARN, text, f"Wait; a worker tells its state every {BEAT_S:g} s.")


def _lines(counts: QueueCounts, workers: list[WorkerInfo]) -> Iterator[Finding]:
    for (model, priority), waiting in counts.waiting.items():
        if waiting and not any(w.model == model for w in workers):
            yield Finding(
                Level.FAIL,
                f"{waiting} {priority} jobs wait for {model}, which no live worker serves",
                f"Start a worker with {model}, or cancel them.",
            )
    if counts.oldest_age_s > LONG_WAIT_S:
        yield Finding(
            Level.WARN,
            f"the oldest waiting job has waited {counts.oldest_age_s:.0f} s",
            "Start more workers, or lower FLUID_MAX_QUEUE so that callers hear of it sooner.",
        )


def _failures(counts: QueueCounts) -> Iterator[Finding]:
    if counts.dead_letter_depth:
        yield Finding(
            Level.WARN,
            f"{counts.dead_letter_depth} dead letters",
            "`fluid dlq list` says why; `fluid dlq replay` draws them again, `fluid dlq drop` forgets them.",
        )
    yield Finding(
        Level.OK,
        f"{counts.redeliveries} jobs were taken over from silent workers, {counts.fenced} late results refused",
    )
