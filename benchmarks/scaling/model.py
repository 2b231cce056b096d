"""What was measured, what is simulated, and the utilisation that follows without a simulation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")
#: Beyond this share of its one thread, Redis' own queue grows faster than what arrives: see docs/scaling.md.
BUSY = 0.7


@dataclass(frozen=True)
class Costs:
    """Processor time, by job and by process: Redis in microseconds, a gateway in milliseconds."""

    enqueue_us: float
    take_us: float
    finish_us: float  #: with what the gateway reads afterwards
    worker_us: float  #: Redis' per second and worker: heartbeats, renewals, waiting for a wake-up
    gateway_us: float  #: Redis' per second and gateway
    accept_ms: float  #: from the request to the queue
    respond_ms: float  #: from the result to the response

    @property
    def job_us(self) -> float:
        return self.enqueue_us + self.take_us + self.finish_us

    @property
    def gateway_ms(self) -> float:
        return self.accept_ms + self.respond_ms

    @classmethod
    def read(cls, file: Path = MEASURED) -> Costs:
        return cls(**json.loads(file.read_text())["costs"])


@dataclass(frozen=True)
class Fleet:
    """What one Redis serves: gateways, workers, and the jobs that keep them busy."""

    gateways: int
    workers: int
    rows: int = 4  #: of one worker
    steps: int = 20  #: of one job, which has one image
    step_ms: float = 60.0
    lease_s: float = 10.0
    losses_per_hour: float = 0.0  #: of one worker: how often it dies
    restart_s: float = 30.0

    @property
    def job_s(self) -> float:
        return self.steps * self.step_ms / 1000

    @property
    def jobs_per_s(self) -> float:
        """What the workers can do."""
        return self.workers * self.rows / self.job_s


def background(costs: Costs, fleet: Fleet) -> float:
    """Return the share of Redis' thread that gateways and workers take without any job."""
    return (costs.worker_us * fleet.workers + costs.gateway_us * fleet.gateways) / 1e6


def utilisation(costs: Costs, fleet: Fleet, per_s: float) -> float:
    """Return the share of Redis' thread that `per_s` jobs a second take, with the background."""
    return background(costs, fleet) + costs.job_us * per_s / 1e6


def fleet_for(costs: Costs, per_s: float, busy: float = 0.8, **changes: Any) -> Fleet:
    """Return a fleet whose workers are `busy` with `per_s` jobs a second, and whose gateways are half busy."""
    one = Fleet(1, 1, **changes)
    workers = max(1, round(per_s / (busy * one.jobs_per_s)))
    return Fleet(max(1, round(per_s * costs.gateway_ms / 1000 / 0.5)), workers, **changes)


def end_of_one_redis(costs: Costs, busy: float = BUSY, **changes: Any) -> tuple[float, Fleet]:
    """Return the jobs a second at which Redis is `busy`, with a fleet that fits them, and that fleet."""
    low, high = 1.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        if utilisation(costs, fleet_for(costs, middle, **changes), middle) < busy:
            low = middle
        else:
            high = middle
    return low, fleet_for(costs, low, **changes)


def cells_for(costs: Costs, per_s: float, busy: float = BUSY, **changes: Any) -> int:
    """Return into how many cells, each with a Redis of its own, the load must be cut."""
    return -int(-per_s // end_of_one_redis(costs, busy, **changes)[0])
