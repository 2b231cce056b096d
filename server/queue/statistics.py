"""Statistics of the queue: counts of jobs by state, the position of a waiting one, and what each owner takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.jobs import PRIORITIES, TERMINAL, JobState
from server.queue.registry import Registry
from server.queue.scripts import QueueConnection
from server.records import readable


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The jobs ahead of a waiting one, and their work in row-steps."""

    position: int
    work_ahead: float


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """Counts read at one moment; submitted = the sum of all states."""

    submitted: Mapping[str, int]
    states: Mapping[str, int] = field(default_factory=dict)
    redeliveries: int = 0
    fenced: int = 0
    dead_lettered: int = 0
    dead_letter_depth: int = 0
    oldest_age_s: float = 0.0
    oldest_age_by_model: Mapping[str, float] = field(default_factory=dict)  #: seconds
    waiting: Mapping[tuple[str, str], int] = field(
        default_factory=dict
    )  #: by model and priority, counted in the sorted sets
    waiting_work: Mapping[str, int] = field(default_factory=dict)  #: row-steps, by model
    leases: int = 0  #: counted in the sorted sets
    leases_by_model: Mapping[str, int] = field(default_factory=dict)
    kept: int = 0  #: ended jobs whose record still exists
    expired: int = 0  #: ended jobs whose record is gone
    stored_bytes: int = 0  #: that jobs, images, files and batches take

    def needs(self, model: str) -> bool:
        """True if a job waits for the model or runs with it; the lease of a worker that has died ends later, and its
        job then waits."""
        return bool(self.waiting_work.get(model) or self.leases_by_model.get(model))

    @property
    def running(self) -> int:
        return sum(self.states.get(s.value, 0) for s in (JobState.STARTING, JobState.PROCESSING))

    @property
    def ended(self) -> int:
        return sum(self.states.get(s.value, 0) for s in TERMINAL)


async def queue_counts(queue: QueueConnection) -> QueueCounts:
    """Read the counters, and the structures that must agree with them, in one transaction."""
    models = await queue.redis.hkeys(queue.keys.models_hash)
    lines = [queue.keys.waiting_since_zset(model, priority) for model in models for priority in PRIORITIES]
    async with queue.redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(queue.keys.counters_hash)
        pipe.xlen(queue.keys.dead_letters_stream)
        pipe.zcard(queue.keys.ended_zset)
        pipe.time()
        for line in lines:
            pipe.zcard(line)
            pipe.zrange(line, 0, 0, withscores=True)
        for model in models:
            pipe.zcard(queue.keys.leases_zset(model))
        fields, dead, kept, (seconds, micros), *rest = await pipe.execute()
    raw = dict(readable("a counter", fields.items(), _whole))
    sizes, oldest, leases = rest[: 2 * len(lines) : 2], rest[1 : 2 * len(lines) : 2], rest[2 * len(lines) :]
    now = seconds + micros / 1e6
    waiting = [(model, priority) for model in models for priority in PRIORITIES]
    ages = dict.fromkeys(models, 0.0)
    for (model, _), first in zip(waiting, oldest, strict=True):
        if first:
            ages[model] = max(ages[model], now - first[0][1])
    return QueueCounts(
        submitted={k.removeprefix("submitted:"): v for k, v in raw.items() if k.startswith("submitted:")},
        states={s.value: raw.get(f"state:{s.value}", 0) for s in JobState},
        redeliveries=raw.get("redeliveries", 0),
        fenced=raw.get("fenced", 0),
        dead_lettered=raw.get("dead_lettered", 0),
        expired=raw.get("expired", 0),
        dead_letter_depth=dead,
        oldest_age_s=max([0.0, *ages.values()]),
        oldest_age_by_model=ages,
        waiting=dict(zip(waiting, sizes, strict=True)),
        waiting_work={model: raw.get(f"work:{model}", 0) for model in models},
        leases=sum(leases),
        leases_by_model=dict(zip(models, leases, strict=True)),
        kept=kept,
        stored_bytes=raw.get("stored_bytes", 0),
    )


@dataclass(frozen=True, slots=True)
class OwnerUsage:
    """What one owner takes of what all share; the owner is the API key's name, or empty."""

    owner: str
    stored_bytes: int
    waiting: int
    running: int
    batches: int  #: unfinished ones
    webhooks: int  #: not delivered yet


async def usage_by_owner(queue: QueueConnection) -> list[OwnerUsage]:
    """Read what each owner takes, most bytes first."""
    keys = queue.keys
    raw = await queue.redis.hgetall(keys.stored_bytes_hash)
    stored = dict(readable("a count of bytes", raw.items(), _whole))
    owners = list({*raw, *await queue.redis.zrange(keys.webhook_owners_zset, 0, -1)})
    async with queue.redis.pipeline(transaction=False) as pipe:
        for owner in owners:
            for state in ("queued", "running"):
                pipe.zcard(keys.state_jobs_zset(owner, state))
            pipe.zcard(keys.open_batches_zset(owner))
            pipe.zcard(keys.webhooks_zset(owner))
        counts = await pipe.execute()
    of_each = zip(counts[::4], counts[1::4], counts[2::4], counts[3::4], strict=True)
    found = [
        OwnerUsage(owner, max(0, stored.get(owner, 0)), *four) for owner, four in zip(owners, of_each, strict=True)
    ]
    return sorted(found, key=lambda usage: -usage.stored_bytes)


def _whole(counter: tuple[str, str]) -> tuple[str, int]:
    """A counter's name and value. Virtual times, which lie in the same hash, are fractions."""
    name, value = counter
    return name, 0 if name.startswith("virtual:") else int(value)


async def unserved_models(queue: QueueConnection, registry: Registry) -> list[str]:
    """The published models that no live worker serves and no job needs."""
    served, counts = {worker.model for worker in await registry.workers()}, await queue_counts(queue)
    return [each for each in await registry.models() if each not in served and not counts.needs(each)]
