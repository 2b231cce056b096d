"""Which row is paused for an image that waits, when all rows are held. Plain Python, as the scheduler.

Without preemption an image waits for a whole image of another caller, however small its caller's share of the rows is:
a flood of long images holds all of them. The row's snapshot is kept, and its image resumes on the next row that its
caller gets. Two images may preempt:

- one of a caller with at most half as many rows as another will have left, for a row of that other one;
- one of the classes high and normal, for a row of the class low: that is what low is for.

Neither touches a row of a higher class than the image's own. Each image is paused at most MAX_PAUSES times, and no more
than `max_rows` images are paused at once, which also bounds their snapshots.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from server.jobs import PRIORITIES
from server.queue.lease_queue import Preempting
from server.worker.scheduling.held_job import HeldJob
from server.worker.scheduling.scheduler import Scheduler

MAX_PAUSES = 3  # of one image: it must end although smaller callers keep coming
MIN_STEPS_LEFT = 4  # a row that ends as soon is not worth a snapshot
LOWEST = len(PRIORITIES) - 1


@dataclass(frozen=True, slots=True)
class Preemption:
    """An image that waits, and the row that is paused for it."""

    job: HeldJob
    index: int
    victim: HeldJob
    row: int
    reason: str  #: "share" or "class"


class PreemptionPolicy:
    """Reads the scheduler's rows and changes nothing."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def choose(self, now: float) -> Preemption | None:
        """The next preemption, of images that no idle or ending row was found for."""
        if not self._possible:
            return None
        held = self._rows_by_caller()
        waiting = [job for job in self._scheduler.jobs.values() if _may_enter(job)]
        for job in sorted(waiting, key=lambda each: PRIORITIES.index(self._scheduler.priority(each, now))):
            if (found := self._victim(job, held, now)) is not None:
                return Preemption(job, job.waiting[0], *found)
        return None

    def takeable(self, now: float) -> dict[str, Preempting]:
        """The jobs that are worth taking from the queue although all rows are held, by class."""
        if not self._possible or self.choose(now) is not None:
            return {}
        held, found = self._rows_by_caller(), dict[str, Preempting]()
        here = {job.lease.input.caller for job in self._scheduler.jobs.values() if job.waiting}
        victims = [(_rank(job), held[job.lease.input.caller]) for job, _, _ in self._victims()]
        for rank, priority in enumerate(PRIORITIES):
            largest = max((rows for other, rows in victims if other >= rank), default=0)
            any_caller = rank < LOWEST and any(other == LOWEST for other, _ in victims)
            if any_caller or largest >= 2:
                enough = {caller for caller, rows in held.items() if not _smaller(rows, largest)}
                found[priority] = Preempting(any_caller, largest >= 2, sorted(enough | here))
        return found

    @property
    def _possible(self) -> bool:
        scheduler = self._scheduler
        paused = sum(len(job.paused) for job in scheduler.jobs.values())
        return scheduler.idle_rows <= 0 and paused < scheduler.max_rows and not scheduler.quarantined

    def _victim(self, job: HeldJob, held: Counter[str], now: float) -> tuple[HeldJob, int, str] | None:
        """The row to pause for an image of this job, and why: of low class first, then of the largest caller, and of
        these the one with the most steps left."""
        rank, own = PRIORITIES.index(self._scheduler.priority(job, now)), held[job.lease.input.caller]
        best: tuple[tuple[bool, int, int], HeldJob, int] | None = None
        for victim, row, left in self._victims():
            rows = held[victim.lease.input.caller]
            by_class = _rank(victim) == LOWEST and _rank(job) < LOWEST
            if not by_class and not (_rank(victim) >= rank and _smaller(own, rows)):
                continue
            order = (by_class, rows, left)
            if best is None or order > best[0]:
                best = order, victim, row
        return None if best is None else (best[1], best[2], "class" if best[0][0] else "share")

    def _victims(self) -> Iterator[tuple[HeldJob, int, int]]:
        """(job, row, steps left) of each row that may be paused."""
        for job in self._scheduler.jobs.values():
            if job.closing or job.lost or job.canceled:
                continue
            steps = job.lease.input.sampling.num_inference_steps
            for row, index in job.rows.items():
                left = steps - job.steps_done.get(index, 0)
                if left >= MIN_STEPS_LEFT and row not in job.pausing and job.pauses.get(index, 0) < MAX_PAUSES:
                    yield job, row, left

    def _rows_by_caller(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for job in self._scheduler.jobs.values():
            if rows := len(job.rows) + len(job.admitting) - len(job.pausing & job.rows.keys()):
                held[job.lease.input.caller] += rows
        return held


def _rank(job: HeldJob) -> int:
    """The class that the job was submitted with; ageing helps it to a row, but does not protect the row."""
    return PRIORITIES.index(job.lease.input.priority)


def _smaller(rows: int, of_victim: int) -> bool:
    """True if a caller with `rows` rows may have one of a caller with `of_victim`: with less of a gap, two that flood
    would take rows from each other without end."""
    return 2 * (rows + 1) <= of_victim


def _may_enter(job: HeldJob) -> bool:
    return job.admissible and len(job.rows) + len(job.admitting) < job.row_limit
