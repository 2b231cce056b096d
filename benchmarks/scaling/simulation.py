"""Discrete-event simulation of one cell: gateways, one Redis, workers that decode rows in steps, and workers that die.

Gateways and Redis are single servers, first come first served. Redis' background work (heartbeats, renewals, waiting
workers) slows it down by its share. A worker that is idle begins at once; one with rows in progress admits new ones
between two steps. A worker that dies holds its jobs until their leases end; then they go to the front of the queue.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from random import Random

from benchmarks.scaling.model import Costs, Fleet, background, utilisation

WARM_UP = 0.25  # share of the simulated time that is not counted


@dataclass(frozen=True)
class Outcome:
    """Times in milliseconds. `waited` is from the request to the start of the first step, `latency` to the response."""

    jobs_per_s: float
    waited_p50_ms: float
    waited_p99_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    redis: float  #: utilisation, above 1 if there is more to do than time
    redelivered: int
    ended: int
    left: int  #: accepted and neither ended nor running at the end


@dataclass
class _Job:
    arrived: float
    started: float = 0.0
    gateway: int = 0


@dataclass
class _Worker:
    free: int
    phase: float = 0.0  #: when its last step boundary was
    life: int = 0
    alive: bool = True
    listed: bool = True  #: among the idle
    running: set[int] = field(default_factory=set)


class Server:
    """One thread that serves in the order of arrival."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def serve(self, at: float, seconds: float) -> float:
        """Return when work that arrives at `at`, later than all before it, is done."""
        self.free_at = max(at, self.free_at) + seconds
        return self.free_at


class Simulation:
    """One run of `seconds`, with `per_s` Poisson arrivals, or with `callers` who each send a job when theirs has ended.

    Raises:
        ValueError: gateways and workers leave nothing of Redis for jobs.
    """

    def __init__(
        self, costs: Costs, fleet: Fleet, per_s: float, seconds: float, *, callers: int = 0, seed: int = 1
    ) -> None:
        if background(costs, fleet) >= 1:
            raise ValueError(f"{fleet.workers} workers and {fleet.gateways} gateways keep Redis busy without any job")
        self._callers = callers
        self._costs, self._fleet, self._per_s, self._seconds = costs, fleet, per_s, seconds
        self._random = Random(seed)
        self._slower = 1e-6 / (1 - background(costs, fleet))
        self._redis, self._gateways = Server(), [Server() for _ in range(fleet.gateways)]
        self._workers = [_Worker(fleet.rows) for _ in range(fleet.workers)]
        self._idle = list(range(fleet.workers))  # workers with a free row, with some that have none any more
        self._waiting: deque[int] = deque()
        self._jobs: list[_Job] = []
        self._events: list[tuple[float, int, str, int, int]] = []
        self._number = self._redelivered = 0
        self._waits: list[float] = []
        self._latencies: list[float] = []

    def run(self) -> Outcome:
        for _ in range(self._callers or 1):
            self._at(self._random.expovariate(self._per_s), "arrive")
        if self._fleet.losses_per_hour:
            self._at(self._next_loss(), "lose")
        handlers = {
            "arrive": self._arrive, "enqueue": self._enqueue, "queued": self._queued, "take": self._take,
            "ended": self._ended, "respond": self._respond, "lose": self._lose, "lapsed": self._lapsed,
            "back": self._back,
        }  # fmt: skip
        while self._events and self._events[0][0] < self._seconds:
            at, _, kind, one, other = heapq.heappop(self._events)
            handlers[kind](at, one, other)
        counted = self._seconds * (1 - WARM_UP)
        return Outcome(
            len(self._latencies) / counted,
            percentile(self._waits, 50), percentile(self._waits, 99),
            percentile(self._latencies, 50), percentile(self._latencies, 99),
            utilisation(self._costs, self._fleet, len(self._latencies) / counted if self._callers else self._per_s),
            self._redelivered, len(self._latencies), len(self._waiting),
        )  # fmt: skip

    def _at(self, time: float, kind: str, one: int = 0, other: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, kind, one, other))

    def _arrive(self, at: float, *_: int) -> None:
        job, gateway = len(self._jobs), self._random.randrange(self._fleet.gateways)
        self._jobs.append(_Job(at, gateway=gateway))
        self._at(self._gateways[gateway].serve(at, self._costs.accept_ms / 1000), "enqueue", job)
        if not self._callers:
            self._at(at + self._random.expovariate(self._per_s), "arrive")

    def _enqueue(self, at: float, job: int, _: int) -> None:
        self._at(self._redis.serve(at, self._costs.enqueue_us * self._slower), "queued", job)

    def _queued(self, at: float, job: int, _: int) -> None:
        self._waiting.append(job)
        self._wake(at)

    def _wake(self, at: float) -> None:
        """Let a worker with a free row take the next job; it starts at the worker's next step boundary."""
        while self._idle:
            place = self._random.randrange(len(self._idle))
            number = self._idle[place]
            worker = self._workers[number]
            if not worker.alive or worker.free == 0:
                self._idle[place] = self._idle[-1]
                self._idle.pop()
                worker.listed = False
                continue
            worker.free -= 1
            self._at(at, "take", number, worker.life)
            return

    def _offer(self, number: int) -> None:
        if not self._workers[number].listed:
            self._workers[number].listed = True
            self._idle.append(number)

    def _boundary(self, worker: _Worker, at: float) -> float:
        step_s = self._fleet.step_ms / 1000
        if not worker.running:
            return at
        return worker.phase + math.ceil((at - worker.phase) / step_s - 1e-9) * step_s

    def _take(self, at: float, number: int, life: int) -> None:
        worker = self._workers[number]
        if worker.life != life:
            return
        if not self._waiting:
            worker.free += 1
            self._offer(number)
            return
        job = self._waiting.popleft()
        began = self._redis.serve(at, self._costs.take_us * self._slower)
        if not worker.running:
            worker.phase = began
        starts = max(began, self._boundary(worker, began))
        worker.running.add(job)
        if not self._jobs[job].started:
            self._jobs[job].started = starts
            if starts > self._seconds * WARM_UP:
                self._waits.append((starts - self._jobs[job].arrived) * 1000)
        self._at(starts + self._fleet.job_s, "ended", job, number * 1_000_000 + life)

    def _ended(self, at: float, job: int, holder: int) -> None:
        number, life = divmod(holder, 1_000_000)
        worker = self._workers[number]
        if worker.life != life:
            return  # it died with the job
        worker.running.discard(job)
        worker.phase = at
        worker.free += 1
        self._offer(number)
        self._at(self._redis.serve(at, self._costs.finish_us * self._slower), "respond", job)
        if self._waiting:
            self._wake(at)

    def _respond(self, at: float, job: int, _: int) -> None:
        done = self._gateways[self._jobs[job].gateway].serve(at, self._costs.respond_ms / 1000)
        if done > self._seconds * WARM_UP:
            self._latencies.append((done - self._jobs[job].arrived) * 1000)
        if self._callers:
            self._at(done, "arrive")

    def _next_loss(self) -> float:
        return self._random.expovariate(self._fleet.losses_per_hour / 3600 * self._fleet.workers)

    def _lose(self, at: float, *_: int) -> None:
        number = self._random.randrange(self._fleet.workers)
        worker = self._workers[number]
        if worker.alive:
            for job in sorted(worker.running):  # a lease is renewed every third of its time
                left = self._random.uniform(2 / 3, 1) * self._fleet.lease_s
                self._at(at + left, "lapsed", job)
            worker.alive, worker.life, worker.free = False, worker.life + 1, 0
            worker.running.clear()
            self._at(at + self._fleet.restart_s, "back", number)
        self._at(at + self._next_loss(), "lose")

    def _lapsed(self, at: float, job: int, _: int) -> None:
        self._redelivered += 1
        self._waiting.appendleft(job)
        self._wake(at)

    def _back(self, at: float, number: int, _: int) -> None:
        worker = self._workers[number]
        worker.alive, worker.free = True, self._fleet.rows
        self._offer(number)
        for _row in range(min(len(self._waiting), self._fleet.rows)):
            self._wake(at)


def percentile(values: list[float], percent: float) -> float:
    """Return the nearest-rank percentile; infinity without values."""
    ordered = sorted(values)
    if not ordered:
        return math.inf
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
