"""A plain-Python model of the queue, for test_state_machine to compare with."""

from collections.abc import Collection
from dataclasses import dataclass

from server.jobs import PRIORITIES


@dataclass
class Job:
    """A job in the model."""

    name: str
    priority: str
    caller: str
    sequence: int
    work: int
    state: str = "queued"
    attempt: int = 0
    token: int = 0
    cancel: bool = False
    error: bool = False
    holder: str = ""
    lapsed: bool = False
    saved: bool = False


class Line:
    """One priority class: callers by the work they were served, then first come, first served."""

    def __init__(self) -> None:
        self.now = 0
        #: Also of callers without waiting jobs, until the class has caught up with them.
        self.served: dict[str, int] = {}

    def join(self, caller: str, waiting: set[str]) -> None:
        if caller not in waiting:
            self.served = {c: at for c, at in self.served.items() if at > self.now or c in waiting}
            self.served.setdefault(caller, self.now)

    def first(self, waiting: set[str]) -> str:
        return min(waiting, key=lambda caller: (self.served[caller], caller))

    def serve(self, caller: str, work: int) -> None:
        self.now = max(self.now, self.served[caller])
        self.served[caller] += work


class QueueModel:
    """All jobs and waiting lines, and how often the queue's counters must have moved."""

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.jobs: dict[str, Job] = {}
        self.lines = {priority: Line() for priority in PRIORITIES}
        self.fenced = self.redeliveries = self.dead = 0

    def waiting(self, priority: str) -> set[str]:
        return {job.caller for job in self.jobs.values() if job.state == "queued" and job.priority == priority}

    def expected_order(self, classes: Collection[str] = PRIORITIES, but: Collection[str] = ()) -> Job | None:
        for priority in PRIORITIES:
            if priority in classes and (callers := self.waiting(priority) - set(but)):
                caller = self.lines[priority].first(callers)
                own = [j for j in self.jobs.values() if (j.state, j.priority, j.caller) == ("queued", priority, caller)]
                return min(own, key=lambda job: job.sequence)
        return None

    def begin(self, job: Job, worker: str) -> bool:
        """Start an attempt in the model; False if the job ended instead."""
        job.token = 0  # until the lease tells it
        if job.cancel:
            job.state = "canceled"
            return False
        self.redeliveries += job.state != "queued"
        job.attempt += 1
        if job.attempt > self.max_attempts:
            job.attempt, job.state = self.max_attempts, "failed"
            self.dead += 1
            return False
        if job.state == "queued":
            self.lines[job.priority].serve(job.caller, job.work)
        job.state, job.holder, job.lapsed = "starting", worker, False
        return True
