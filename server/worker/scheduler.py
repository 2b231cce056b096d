"""Which image sits in which row at the next step: plain Python, no engine, no Redis, no clock of its own.

First the class (high, normal, low; who waits long goes up), then callers in turn by deficit round-robin (Shreedhar and
Varghese 1996) with AR steps as the size of an image, then first come first served. Every free row is filled while
anything waits. Jobs that shared a failed call are in quarantine: a cohort runs by itself, and when it fails again it is
split in halves, until the guilty one is alone.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

from server.jobs import PRIORITIES, Lease
from server.worker.held_job import HeldJob


class DeficitRoundRobin:
    """Callers in turn: each turn brings a quantum, an image costs its steps, what is left is kept for the next turn."""

    def __init__(self) -> None:
        self._ring: deque[str] = deque()
        self._deficit: dict[str, float] = {}
        self._turn: str | None = None

    def next(self, cost: Mapping[str, float]) -> str:
        """Whose image is served now, given what each waiting caller's first one costs; who leaves loses his rest."""
        self._ring = deque([c for c in self._ring if c in cost] + [c for c in cost if c not in self._deficit])
        self._deficit = {c: self._deficit.get(c, 0.0) for c in self._ring}
        quantum = max(cost.values())  # so that every turn serves at least one image
        while True:
            caller = self._ring[0]
            if self._turn != caller:
                self._turn = caller
                self._deficit[caller] += quantum
            if self._deficit[caller] >= cost[caller]:
                self._deficit[caller] -= cost[caller]
                return caller
            self._ring.rotate(-1)
            self._turn = None


class Scheduler:
    """The rows of one engine, and the jobs that its worker holds."""

    def __init__(self, max_rows: int, ageing_s: float) -> None:
        self.max_rows = max_rows
        self.ageing_s = ageing_s
        self.works: dict[str, HeldJob] = {}  # by job id, oldest first
        self._turns = {priority: DeficitRoundRobin() for priority in PRIORITIES}
        self._cohorts = 0

    # --- what is held ---------------------------------------------------------------------------------

    @property
    def rows(self) -> dict[int, HeldJob]:
        return {row: work for work in self.works.values() for row in work.rows}

    @property
    def free_rows(self) -> int:
        return self.max_rows - sum(len(work.rows) for work in self.works.values())

    @property
    def active(self) -> list[HeldJob]:
        return [work for work in self.works.values() if work.rows]

    @property
    def busy(self) -> bool:
        """Something is in a row or on its way into one; the rest is only being published."""
        return any(work.rows or work.waiting for work in self.works.values())

    @property
    def work_left(self) -> int:
        return sum(work.work_left for work in self.works.values())

    def room(self) -> int:
        """How many more images are worth taking from the queue now. More would be hoarded from idle workers."""
        if self._quarantined():
            return 0
        return self.free_rows - sum(len(work.waiting) for work in self.works.values())

    def saturated(self) -> bool:
        """Jobs of many images have taken all rows and want more; one more job, and callers can take turns."""
        waiting = [work for work in self.works.values() if work.waiting]
        return bool(waiting) and not self._quarantined() and all(work.started for work in waiting)

    def add(self, lease: Lease, taken_at: float) -> HeldJob:
        stale = self.works.get(lease.job_id)
        if stale is not None:
            # We had lost the job and got it again before noticing; the loop still has to free the stale rows.
            stale.lost = True
            self.works[f"{lease.job_id}#{stale.lease.token}"] = self.works.pop(lease.job_id)
        work = HeldJob(lease, taken_at, deque(range(lease.input.n)))
        if lease.suspect:
            work.cohort = self._new_cohort()
        self.works[lease.job_id] = work
        return work

    def remove(self, work: HeldJob) -> None:
        """By identity: after a lost lease two works may bear the same job id for a moment."""
        self.works = {key: other for key, other in self.works.items() if other is not work}

    # --- quarantine -----------------------------------------------------------------------------------

    def split(self, works: Sequence[HeldJob]) -> None:
        """A call with these failed: each half of them runs by itself from now on."""
        middle = (len(works) + 1) // 2
        for half in (works[:middle], works[middle:]):
            cohort = self._new_cohort()
            for work in half:
                work.cohort = cohort

    def thin(self, work: HeldJob, at_once: int) -> None:
        """A call with several images of this job alone failed: fewer of them together from now on."""
        work.at_once = at_once
        if work.cohort is None:
            work.cohort = self._new_cohort()

    def _new_cohort(self) -> int:
        self._cohorts += 1
        return self._cohorts

    def _quarantined(self) -> list[HeldJob]:
        return [work for work in self.works.values() if work.cohort is not None and (work.waiting or work.rows)]

    def _candidates(self) -> list[HeldJob]:
        """Who may enter a row now."""
        suspects = self._quarantined()
        if not suspects:
            return [work for work in self.works.values() if work.waiting]
        cohort = next((work.cohort for work in suspects if work.rows), min(work.cohort or 0 for work in suspects))
        if any(work.cohort != cohort for work in self.active):
            return []  # neighbours finish first
        return [work for work in suspects if work.cohort == cohort and work.waiting]

    # --- rows -----------------------------------------------------------------------------------------

    def next_images(self, now: float) -> list[tuple[HeldJob, int]]:
        """Images to admit before the next step, in order; the caller seats each of them, or drops its job."""
        free = self.free_rows
        if not free:
            return []
        lines: dict[str, dict[str, deque[tuple[HeldJob, int]]]] = {priority: {} for priority in PRIORITIES}
        for work in self._candidates():
            line = lines[self.priority(work, now)].setdefault(work.lease.input.caller, deque())
            line.extend((work, index) for index in islice(work.waiting, max(0, work.at_once - len(work.rows))))
            if not line:
                del lines[self.priority(work, now)][work.lease.input.caller]
        chosen: list[tuple[HeldJob, int]] = []
        for priority, callers in lines.items():
            while callers and len(chosen) < free:
                costs = {
                    caller: line[0][0].lease.input.sampling.num_inference_steps for caller, line in callers.items()
                }
                caller = self._turns[priority].next(costs)
                chosen.append(callers[caller].popleft())
                if not callers[caller]:
                    del callers[caller]
        return chosen

    def priority(self, work: HeldJob, now: float) -> str:
        """Its class, one higher for every `ageing_s` since it was accepted."""
        waited_s = work.lease.started_at - work.lease.created_at + now - work.taken_at
        risen = int(waited_s / self.ageing_s)
        return PRIORITIES[max(0, PRIORITIES.index(work.lease.input.priority) - risen)]

    def seat(self, work: HeldJob, index: int, row: int) -> None:
        work.waiting.remove(index)
        work.rows[row] = index
        work.started = True

    def unseat(self, work: HeldJob, row: int, *, again: bool) -> int:
        """Take an image off its row; `again` puts it back in front of the line."""
        index = work.rows.pop(row)
        if again:
            work.waiting.appendleft(index)
            work.steps_done[index] = 0
        return index
