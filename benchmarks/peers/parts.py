"""The parts of the comparison: throughput, latency, added latency, a killed worker, and the shipped model.

Sides alternate: in every round each side is started in turn, in an order that rotates, and figures are medians over the
rounds; latency, the killed worker and the model have one round. One image is 20 steps of 2 ms unless said otherwise,
and up to 16 images share a step.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.peers import crash, wrk
from benchmarks.peers.processes import memory_mib, used_cpu_s
from benchmarks.peers.servers.work import ROWS
from benchmarks.peers.sides import NAMES, Side, await_image, fake, running, shipped

EQUAL, MIXED = (20,), (8, 20, 64)  # autoregressive steps
SETTINGS = {"equal": EQUAL, "mixed": MIXED}
STEP_MS = 2.0
COST_CALLERS = 64  # memory and processor time per image are read at this load
CAPACITY_CALLERS, SHARES = (16, 64), (0.5, 0.8)  # of a side's own capacity
ADDED_RATE, ADDED_STEPS = 100.0, (8,)  # with steps that cost nothing
WARM_STEPS = (8,)
BATCHES, CLOSED_MOST_S = 4, 20
FEWEST_FOR_P99 = 300  # requests; of fewer, the p99 is that of a handful
CHECKPOINT, MODEL_STEPS, MODEL_MIXED = "atlas-128", (8,), (4, 8, 16)
MODEL_IMAGES = 8  # of a single caller

Figures = dict[str, float | None]
Table = dict[str, Figures]  # side -> figure -> median
Measure = Callable[[Side, Figures], None]  # adds what it measures to the figures


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure.

    Each run goes on until it has seen enough images: whole batches for a rate, and requests for a p99.
    """

    rounds: int
    callers: tuple[int, ...]
    seconds: int  # of a closed-loop run, at least
    paced: wrk.Length
    warm_s: int
    crash_s: float
    model: wrk.Length
    model_callers: tuple[int, ...]

    def closed(self, callers: int) -> wrk.Length:
        """Return the length of a closed-loop run: four batches, or as many images of each caller if they are fewer."""
        return wrk.Length(self.seconds, BATCHES * min(callers, ROWS), CLOSED_MOST_S)


FULL = Plan(rounds=3, callers=(1, 16, 64, 256), seconds=2, paced=wrk.Length(5, 500, 30), warm_s=1, crash_s=8.0,
            model=wrk.Length(6, 2 * ROWS, 25), model_callers=(1, 16))  # fmt: skip
QUICK = Plan(rounds=1, callers=(1, 16, 64), seconds=1, paced=wrk.Length(2, 100, 10), warm_s=1, crash_s=4.0,
             model=wrk.Length(2, ROWS, 20), model_callers=(1, 16))  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """The sides to compare, the interpreter of the peers, and the plan; `problems` are what sides failed at."""

    sides: Sequence[str]
    python: Path
    plan: Plan
    fsync: str = "always"  # FLUID_FSYNC of ours
    problems: list[str] = field(default_factory=list)

    def rotated(self, round_: int, among: Sequence[str] | None = None) -> list[str]:
        """Return the sides in the order of this round."""
        names = [name for name in self.sides if among is None or name in among]
        shift = round_ % max(1, len(names))
        return names[shift:] + names[:shift]

    def repeat(
        self, about: str, engine: dict[str, str], measure: Measure, rounds: int,
        among: Sequence[str] | None = None,
    ) -> Table:  # fmt: skip
        """Start each side in turn, `rounds` times, and return the medians of what `measure` adds to the figures.

        A side that does not start or stops serving is reported, and what it had shown before counts; the others go on.
        """
        seen: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
        order = [name for round_ in range(rounds) for name in self.rotated(round_, among)]
        bar = tqdm(order, desc=about, leave=False)
        for name in bar:
            bar.set_postfix_str(NAMES[name])
            figures: Figures = {}
            try:
                with running(name, engine | {"FLUID_FSYNC": self.fsync}, self.python) as side:
                    wrk.closed(side.port, ROWS, WARM_STEPS, wrk.Length(self.plan.warm_s, ROWS))
                    settle(side)
                    measure(side, figures)
            except RuntimeError as error:
                self.problems.append(f"{about}: {error}")
                bar.write(self.problems[-1], file=sys.stderr)
            for figure, value in figures.items():
                seen[name][figure].append(value)
        return {
            name: {figure: _median(values) for figure, values in seen[name].items()}
            for name in self.sides
            if name in seen
        }


def throughput(setup: Setup) -> Table:
    """Images/s by callers, equal and mixed settings; processor time and memory at 64 callers."""

    def measure(side: Side, figures: Figures) -> None:
        for callers in setup.plan.callers:
            for kind, steps in SETTINGS.items():
                if kind == "equal" or callers > 1:
                    figures.update(_closed(side, kind, steps, callers, setup.plan.closed(callers)))

    return setup.repeat("throughput", fake(STEP_MS), measure, setup.plan.rounds)


def latency(setup: Setup) -> Table:
    """p50 and p99 at shares of the side's own capacity: the most images/s that it reaches just before."""

    def measure(side: Side, figures: Figures) -> None:
        capacity = 0.0
        for callers in CAPACITY_CALLERS:
            settle(side)
            capacity = max(capacity, wrk.closed(side.port, callers, EQUAL, setup.plan.closed(callers)).images_per_s)
        figures["capacity"] = capacity
        for share in SHARES:
            settle(side)
            load = wrk.paced(side.port, capacity * share, EQUAL, setup.plan.paced)
            figures.update(_paced(f"at_{100 * share:.0f}", load))

    return setup.repeat("latency", fake(STEP_MS), measure, 1)


def added(setup: Setup) -> Table:
    """p50 and p99 at 100 requests/s with steps that cost nothing: latency that the service adds, ours and by hand."""

    def measure(side: Side, figures: Figures) -> None:
        figures.update(_paced("added", wrk.paced(side.port, ADDED_RATE, ADDED_STEPS, setup.plan.paced)))

    return setup.repeat("added latency", fake(0.0), measure, setup.plan.rounds, among=("by_hand", "ours"))


def killed(setup: Setup) -> Table:
    """What is lost when the process that holds the engine is killed under load."""

    def measure(side: Side, figures: Figures) -> None:
        figures.update(crash.kill_under_load(side, EQUAL[0], setup.plan.crash_s))

    return setup.repeat("killed worker", fake(STEP_MS), measure, 1)


def model(setup: Setup) -> Table:
    """Images/s of the shipped model."""

    def measure(side: Side, figures: Figures) -> None:
        for kind, steps in (("equal", MODEL_STEPS), ("mixed", MODEL_MIXED)):
            for callers in setup.plan.model_callers:
                if kind == "equal" or callers > 1:
                    settle(side)
                    length = setup.plan.model if callers > 1 else replace(setup.plan.model, responses=MODEL_IMAGES)
                    load = wrk.closed(side.port, callers, steps, length)
                    name = f"{kind}_{callers}"
                    figures.update({name: load.images_per_s, f"failed_{name}": load.failed})

    return setup.repeat("shipped model", shipped(CHECKPOINT), measure, 1)


def settle(side: Side) -> None:
    """Wait until the side has worked off what wrk left behind: it hangs up at the end, and servers do not notice.

    Raises:
        RuntimeError: no image came within wrk's own timeout.
    """
    await_image(side, wrk.TIMEOUT_S)


def _closed(side: Side, kind: str, steps: Sequence[int], callers: int, length: wrk.Length) -> Figures:
    settle(side)
    before = used_cpu_s(side.pids())
    load = wrk.closed(side.port, callers, steps, length)
    pids = side.pids()
    after = used_cpu_s(pids)
    name = f"{kind}_{callers}"
    figures: Figures = {name: load.images_per_s, f"p50_ms_{name}": load.p50_ms, f"failed_{name}": load.failed}
    if callers == COST_CALLERS and kind == "equal":
        used = sum(value - before.get(pid, 0.0) for pid, value in after.items())
        figures["cpu_ms_per_image"] = 1000 * used / load.images if load.images else None
        figures["memory_mib"] = memory_mib(pids)
        figures["processes"] = len(pids)
    return figures


def _paced(name: str, load: wrk.Load) -> Figures:
    p99_ms = load.p99_ms if load.images >= FEWEST_FOR_P99 else None
    return {
        f"{name}_p50_ms": load.p50_ms, f"{name}_p99_ms": p99_ms, f"{name}_images": load.images,
        f"{name}_failed": load.failed, f"{name}_late_ms": load.late_ms,
    }  # fmt: skip


def _median(values: Sequence[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 2) if known else None


PARTS: dict[str, Callable[[Setup], Table]] = {
    "throughput": throughput, "latency": latency, "added": added, "killed": killed, "model": model,
}  # fmt: skip
