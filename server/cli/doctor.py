"""`fluid doctor`: check a running service and name the remedy for every problem."""

import argparse
import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.exceptions import RedisError

from server.addresses import without_password
from server.cli.flags import add_command
from server.cli.operations import open_service
from server.errors import ConfigError, StorageUnavailable, UnhealthyService
from server.errors.limits import MIB
from server.queue.job_queue import JobQueue
from server.queue.redis_client import explain, find_problems, read_config, read_maxmemory
from server.queue.registry import HEARTBEAT_S, CrashReport, Registry, WorkerInfo
from server.queue.statistics import OwnerUsage, QueueCounts, queue_counts, usage_by_owner
from server.settings import Settings
from server.storage.object_store import ObjectStore
from server.storage.reasons import remedy
from server.worker.engine.loader import memory_report

OLDEST_REDIS = (7, 0)
LOW_DISK_BYTES = 1 << 30
LONG_WAIT_S = 60.0
NEARLY_FULL = 0.9
MAX_OWNERS = 50  # shown of those who take most


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is empty if nothing is wrong."""

    level: Level
    text: str
    remedy: str = ""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        "Check a running service and print a remedy for every problem.",
        "Checks Redis, the disk, the job counters, workers, queue and dead letters. The exit status is 0 if nothing\n"
        "FAILs, 1 if something needs action, 2 if no service is running.\n\n"
        "examples:\n  fluid doctor\n  FLUID_REDIS_URL=redis://db:6379 fluid doctor\n  fluid doctor --preset 10.5B",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="instead, print the memory that a GPU needs for a model of this size"
    )
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Print the report; raise UnhealthyService if anything needs action, ConfigError for an unknown preset."""
    if args.preset:
        print("\n".join(memory_report(args.preset, settings.dtype)))
        return
    findings = asyncio.run(_diagnose(settings))
    for finding in findings:
        print(f"{finding.level:<5} {finding.text}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    if failed:
        raise UnhealthyService(f"{failed} of {len(findings)} checks failed; see the remedies above.")


async def _diagnose(settings: Settings) -> list[Finding]:
    async with open_service(settings) as (own, queue, registry):
        return [finding async for finding in examine(own, queue, registry)]


async def examine(settings: Settings, queue: JobQueue, registry: Registry) -> AsyncIterator[Finding]:
    """Yield a finding per check, Redis first; stop there if Redis does not respond."""
    address = without_password(settings.redis_url)
    try:
        await queue.redis.ping()
    except RedisError as error:
        meaning, remedy = explain(error)
        yield Finding(Level.FAIL, f"Redis at {address}: the queue {meaning}: {error}", remedy)
        return
    try:
        for finding in _redis(await queue.redis.info()):
            yield finding
        problems = await find_problems(queue.redis, queue.keys.probe, queue.replicated)
        for problem in problems:
            yield Finding(Level.FAIL if problem.severe else Level.WARN, problem.text, problem.remedy)
        if (wanted := queue.replicated.replicas) and not any("FLUID_REPLICAS" in each.text for each in problems):
            replicas = "a replica" if wanted == 1 else f"{wanted} replicas"
            yield Finding(Level.OK, f"every accepted job is on the disk of {replicas} before its 2xx (WAITAOF)")
        if (await read_config(queue.redis)).get("appendfsync") == "always":
            yield Finding(Level.OK, "every accepted job is on disk before its 2xx (appendfsync always)")
        async for finding in _service(queue, registry):
            yield finding
        if queue.store is not None:
            yield await _store(queue.store)
    except RedisError as error:
        meaning, remedy = explain(error)
        yield Finding(Level.FAIL, f"Redis at {address}: the queue {meaning}: {error}", remedy)
    with suppress(ConfigError, OSError):  # no home folder that may be read, hence no embedded Valkey either
        if settings.data_path.exists():
            yield _disk(settings)


async def _service(queue: JobQueue, registry: Registry) -> AsyncIterator[Finding]:
    counts = await queue_counts(queue)
    workers = await registry.workers()
    crashes = await registry.crashes()
    for finding in (
        *check_counters(counts),
        *_workers(workers),
        *_checkpoints(workers),
        *_crashes(crashes),
        *_queue(counts, workers),
        *_failures(counts),
    ):
        yield finding
    queue.set_maxmemory(await read_maxmemory(queue.redis))
    for finding in _usage(await usage_by_owner(queue), await registry.streams(), counts, queue.memory_limits):
        yield finding


def _redis(info: dict[str, Any]) -> Iterator[Finding]:
    version = str(info["redis_version"])
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version', version)}"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield Finding(Level.FAIL, f"{name} is too old", "Use Valkey, or Redis 7.0 or later.")
    else:
        yield Finding(Level.OK, f"{name} responds")


async def _store(store: ObjectStore) -> Finding:
    """Write and delete an object, as workers do; the settings are those of this command's environment."""
    try:
        await store.probe(f"doctor-{os.getpid()}")
    except StorageUnavailable as error:
        return Finding(Level.FAIL, f"the store of finished images {error.reason}: {store.url}", remedy(error.reason))
    return Finding(Level.OK, f"finished images are written to {store.url}")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.data_path).free
    text = f"{free / 2**30:.1f} GiB free at {settings.data_path}"
    if free < LOW_DISK_BYTES:
        return Finding(Level.WARN, text, "Free some space: a full disk stops the service from accepting jobs.")
    return Finding(Level.OK, text)


def check_counters(counts: QueueCounts) -> Iterator[Finding]:
    """Compare the counters that every transition moves with each other and with the structures in Redis."""
    submitted, queued = sum(counts.submitted.values()), counts.states["queued"]
    sums = " + ".join(f"{n} {state}" for state, n in counts.states.items() if n) or "0"
    pairs = [
        (f"{submitted} submitted = {sums}", submitted, queued + counts.running + counts.ended),
        (f"{queued} queued, {sum(counts.waiting.values())} in the waiting lists", queued, sum(counts.waiting.values())),
        (f"{counts.running} running, {counts.leases} leases", counts.running, counts.leases),
        (
            f"{counts.ended} ended = {counts.kept} kept + {counts.expired} expired",
            counts.ended,
            counts.kept + counts.expired,
        ),
    ]
    for text, counted, expected in pairs:
        if counted == expected:
            yield Finding(Level.OK, text)
        else:
            yield Finding(
                Level.FAIL,
                f"job counters disagree: {text}",
                "Another program writes under this FLUID_NAMESPACE, or this is a bug: please report it with this.",
            )


def _workers(workers: list[WorkerInfo]) -> Iterator[Finding]:
    if not workers:
        yield Finding(Level.FAIL, "no live worker", "Start `fluid serve`, or `fluid worker` with this FLUID_REDIS_URL.")
    for w in workers:
        text = f"worker {w.id}: {w.state}, {w.model or 'no model yet'}, {w.rows} of {w.max_rows} rows"
        if w.note:
            level = Level.FAIL if w.state in ("failing", "waiting") else Level.WARN
            yield Finding(level, f"{text}; {w.note}", "See its log.")
        elif w.ready:
            speed = f"{w.row_steps_per_s:.0f} row-steps/s"
            yield Finding(Level.OK, f"{text}, {speed}, {w.kernels} kernels on {w.device}")
        else:
            yield Finding(Level.WARN, text, f"Wait; workers report every {HEARTBEAT_S:g} s.")


def _checkpoints(workers: list[WorkerInfo]) -> Iterator[Finding]:
    """The same request and seed must give the same image, whichever worker takes it."""
    for model in sorted({w.model for w in workers if w.ready}):
        found = sorted({w.checkpoint[:12] for w in workers if w.ready and w.model == model})
        if len(found) > 1:
            yield Finding(
                Level.FAIL,
                f"workers serve {model} with {len(found)} checkpoints: {', '.join(found)}",
                "Wait if a `fluid reload` is rolling through; otherwise start all workers with one checkpoint.",
            )


def _crashes(crashes: list[CrashReport]) -> Iterator[Finding]:
    for crash in crashes:
        times = f"{crash.in_succession} times in succession" if crash.in_succession > 1 else "once"
        yield Finding(
            Level.FAIL if crash.keeps_happening else Level.WARN,
            f"{crash.process}: the background task {crash.task!r} crashed {times} ({crash.error})",
            "Its log has the traceback: please report it. Restart the process if it goes on.",
        )


def _queue(counts: QueueCounts, workers: list[WorkerInfo]) -> Iterator[Finding]:
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
            "Add workers, or lower FLUID_MAX_QUEUE so that callers get 429 sooner.",
        )


def _usage(
    usages: list[OwnerUsage], streams: Mapping[str, int], counts: QueueCounts, limits: Mapping[str, int]
) -> Iterator[Finding]:
    """What each API key takes, and who is near a limit of memory."""
    total, most = counts.stored_bytes, limits["max_bytes"]
    of = f" of {most / MIB:.0f} MiB" if most else ""
    full = bool(most) and total >= NEARLY_FULL * most
    yield Finding(
        Level.WARN if full else Level.OK,
        f"{total / MIB:.1f} MiB{of} stored in jobs, images, files and batches",
        "Raise FLUID_MAX_MIB or Redis' maxmemory, or lower FLUID_RESULT_TTL_S and FLUID_BATCH_TTL_S." if full else "",
    )
    known = {usage.owner for usage in usages}
    others = [OwnerUsage(owner, 0, 0, 0, 0, 0) for owner in sorted(streams) if owner not in known]
    for usage in [*usages, *others][:MAX_OWNERS]:
        most = limits["max_key_bytes"] if usage.owner else 0
        full = bool(most) and usage.stored_bytes >= NEARLY_FULL * most
        yield Finding(
            Level.WARN if full else Level.OK,
            f"{usage.owner or 'no API key'}: {usage.stored_bytes / MIB:.1f} MiB, {usage.waiting} jobs waiting, "
            f"{usage.running} running, {usage.batches} batches, {streams.get(usage.owner, 0)} event streams, "
            f"{usage.webhooks} webhooks to deliver",
            "Nearly FLUID_MAX_KEY_MIB: then requests get 429 and batches wait until files or images expire."
            if full
            else "",
        )


def _failures(counts: QueueCounts) -> Iterator[Finding]:
    if counts.dead_letter_depth:
        yield Finding(
            Level.WARN,
            f"{counts.dead_letter_depth} dead letters",
            "`fluid dlq list` shows the errors; then `fluid dlq replay` or `fluid dlq drop`.",
        )
    yield Finding(
        Level.OK,
        f"{counts.redeliveries} jobs redelivered after a lease expired, {counts.fenced} late results rejected",
    )
