"""Decides which image enters which row at the next step: plain Python, without an engine, Redis or a clock.

First the class (high, normal, low; a job that waits long goes up), then callers in turn by deficit round-robin
(Shreedhar and Varghese 1996) with AR steps as the size of an image, then first come first served. Every free row is
filled while any image waits. Jobs that shared a failed call are in quarantine: a cohort runs by itself, and when it
fails again it is split in halves, until the job at fault is alone.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from math import inf

from server.jobs import PRIORITIES, Lease
from server.worker.scheduling.held_job import HeldJob


class DeficitRoundRobin:
    """Serves callers in turn: each turn adds a quantum, an image costs its steps, and the rest carries over."""

    def __init__(self) -> None:
        self._ring: deque[str] = deque()
        self._deficit: dict[str, float] = {}
        self._turn: str | None = None

    def next(self, cost: Mapping[str, float]) -> str:
        """Choose a caller, given what each one's first image costs; a caller with none waiting forfeits its deficit."""
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
        self.jobs: dict[str, HeldJob] = {}  # by job id, oldest first
        self.rows_ending = 0  #: rows that become free within a few steps; their successors are made ready now
        self._turns = {priority: DeficitRoundRobin() for priority in PRIORITIES}
        self._cohorts = 0
        self._pauses = 0

    # --- what is held ---------------------------------------------------------------------------------

    @property
    def rows(self) -> dict[int, HeldJob]:
        """The job of each row; rows are the numbers that the engine's thread gives them."""
        return {row: job for job in self.jobs.values() for row in job.rows}

    @property
    def idle_rows(self) -> int:
        """How many rows no image has, or will have once it is admitted."""
        return self.max_rows - sum(len(job.rows) + len(job.admitting) for job in self.jobs.values())

    @property
    def active(self) -> list[HeldJob]:
        """Jobs with at least one image on a row, or on its way to one."""
        return [job for job in self.jobs.values() if job.active]

    @property
    def busy(self) -> bool:
        """True if an image is on a row or waits for one; all others are only being published."""
        return any(job.active or job.waiting for job in self.jobs.values())

    @property
    def work_left(self) -> int:
        """Row-steps until every held job is done."""
        return sum(job.work_left for job in self.jobs.values())

    def room(self) -> int:
        """How many more images are worth taking from the queue now. Idle workers need the others."""
        if self.quarantined:
            return 0
        return self.idle_rows + self.rows_ending - sum(len(job.waiting) for job in self.jobs.values())

    def saturated(self) -> bool:
        """True if jobs of many images have taken all rows and want more: one more job lets callers take turns."""
        waiting = [job for job in self.jobs.values() if len(job.waiting) > len(job.paused)]
        return bool(waiting) and not self.quarantined and all(job.started for job in waiting)

    def add(self, lease: Lease, taken_at: float) -> HeldJob:
        stale = self.jobs.get(lease.job_id)
        if stale is not None:
            # The lease was lost and taken again before we noticed; the loop still has to free the stale rows.
            stale.lost = True
            self.jobs[f"{lease.job_id}#{stale.lease.token}"] = self.jobs.pop(lease.job_id)
        job = HeldJob(lease, taken_at, deque(range(lease.input.n)))
        if lease.suspect:
            job.cohort = self._new_cohort()
        self.jobs[lease.job_id] = job
        return job

    def remove(self, job: HeldJob) -> None:
        """Remove by identity: after a lost lease two held jobs may have the same id for a moment."""
        self.jobs = {key: other for key, other in self.jobs.items() if other is not job}

    # --- quarantine -----------------------------------------------------------------------------------

    def split(self, jobs: Sequence[HeldJob]) -> None:
        """Quarantine the jobs of a failed call: each half of them runs by itself from now on."""
        middle = (len(jobs) + 1) // 2
        for half in (jobs[:middle], jobs[middle:]):
            cohort = self._new_cohort()
            for job in half:
                job.cohort = cohort

    def limit_rows(self, job: HeldJob, count: int) -> None:
        """Limit a job whose images failed together in a call of their own: at most `count` of them run together."""
        job.row_limit = count
        if job.cohort is None:
            job.cohort = self._new_cohort()

    def _new_cohort(self) -> int:
        self._cohorts += 1
        return self._cohorts

    @property
    def quarantined(self) -> list[HeldJob]:
        """Suspects that are not done: while there are any, no other job is taken."""
        return [
            job for job in self.jobs.values() if job.cohort is not None and (job.waiting or job.admitting or job.rows)
        ]

    def _candidates(self) -> list[HeldJob]:
        """Jobs whose images may enter a row now."""
        suspects = self.quarantined
        if not suspects:
            return [job for job in self.jobs.values() if job.admissible]
        cohort = next(
            (job.cohort for job in suspects if job.rows or job.admitting), min(job.cohort or 0 for job in suspects)
        )
        if any(job.cohort != cohort for job in self.active):
            return []  # neighbours finish first
        return [job for job in suspects if job.cohort == cohort and job.admissible]

    # --- rows -----------------------------------------------------------------------------------------

    def next_images(self, now: float) -> list[tuple[HeldJob, int]]:
        """Images to admit now, in order, to idle rows first and then to those that end soon."""
        free = self.idle_rows + self.rows_ending
        if free <= 0 or not any(job.waiting for job in self.jobs.values()):
            return []
        waiting: dict[str, dict[str, deque[tuple[HeldJob, int]]]] = {priority: {} for priority in PRIORITIES}
        for job in self._candidates():
            if images := [
                (job, index)
                for index in islice(job.waiting, max(0, job.row_limit - len(job.rows) - len(job.admitting)))
            ]:
                waiting[self.priority(job, now)].setdefault(job.lease.input.caller, deque()).extend(images)
        _preempted_first(waiting)
        chosen: list[tuple[HeldJob, int]] = []
        for priority, callers in waiting.items():
            while callers and len(chosen) < free:
                first = {caller: images[0][0].lease.input.sampling for caller, images in callers.items()}
                costs = {caller: sampling.num_inference_steps for caller, sampling in first.items()}
                caller = self._turns[priority].next(costs)
                chosen.append(callers[caller].popleft())
                if not callers[caller]:
                    del callers[caller]
        return chosen

    def priority(self, job: HeldJob, now: float) -> str:
        """The job's class, one higher for every `ageing_s` since it was accepted."""
        waited_s = job.lease.queue_s + now - job.taken_at
        risen = int(waited_s / self.ageing_s)
        return PRIORITIES[max(0, PRIORITIES.index(job.lease.input.priority) - risen)]

    def start_admission(self, job: HeldJob, index: int) -> None:
        job.waiting.remove(index)
        job.admitting.add(index)

    def assign_row(self, job: HeldJob, index: int, row: int) -> None:
        job.admitting.discard(index)
        job.rows[row] = index
        job.paused.pop(index, None)
        job.started = True

    def return_image(self, job: HeldJob, index: int) -> None:
        """Undo `start_admission` of an image that got no row."""
        if index in job.admitting:
            job.admitting.discard(index)
            job.waiting.appendleft(index)

    def holds(self, job: HeldJob) -> bool:
        """True until the job is removed; by identity, as `remove`."""
        return any(other is job for other in self.jobs.values())

    def free_row(self, job: HeldJob, row: int, *, retry: bool) -> int:
        """Take an image off its row and return its index; with `retry` it waits in front of the job's others."""
        index = job.rows.pop(row)
        if retry:
            job.waiting.appendleft(index)
            job.steps_done[index] = 0
        return index

    def pause_row(self, job: HeldJob, row: int) -> int:
        """Take a preempted image off its row and return its index; it keeps its steps and resumes in its turn."""
        index = job.rows.pop(row)
        job.waiting.appendleft(index)
        self._pauses += 1
        job.paused[index] = self._pauses
        job.pauses[index] = job.pauses.get(index, 0) + 1
        return index


def _preempted_first(waiting: Mapping[str, dict[str, deque[tuple[HeldJob, int]]]]) -> None:
    """Put each caller's preempted images before its others, those that were preempted first in front."""
    for callers in waiting.values():
        for caller, images in callers.items():
            if any(job.paused for job, _ in images):
                callers[caller] = deque(sorted(images, key=lambda image: image[0].paused.get(image[1], inf)))
