"""Which image sits in which row at the next step: plain Python, no engine, no Redis, no clock."""

from collections import deque
from dataclasses import dataclass, field

from server.engine_api import RowRequest
from server.jobs import JobError, Lease, Output


@dataclass(slots=True, eq=False)
class Work:
    """A job that this worker holds, and how far its images are."""

    lease: Lease
    taken_at: float  #: on the worker's own clock
    waiting: deque[int]  #: image indices without a row yet
    suspect: bool
    rows: dict[int, int] = field(default_factory=dict)  #: row -> image index
    steps_done: dict[int, int] = field(default_factory=dict)  #: image index -> AR steps
    outputs: dict[int, Output] = field(default_factory=dict)
    encode_s: float = 0.0
    predict_s: float = 0.0
    batch_peak: int = 0
    started: bool = False
    canceled: bool = False
    lost: bool = False
    failure: JobError | None = None
    closing: bool = False  #: its end is being written; nothing else may touch it

    @classmethod
    def of(cls, lease: Lease, taken_at: float) -> "Work":
        return cls(lease=lease, taken_at=taken_at, waiting=deque(range(lease.input.n)), suspect=lease.suspect)

    @property
    def drawn(self) -> bool:
        """Every image has left its row and its file is stored."""
        return len(self.outputs) == self.lease.input.n

    def request(self, index: int) -> RowRequest:
        return RowRequest.of(self.lease.input, index)


class Batch:
    """The rows of one engine. A suspect job runs alone, so that it can fail nobody but itself."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.works: dict[str, Work] = {}  # by job id, oldest first

    @property
    def rows(self) -> dict[int, Work]:
        return {row: work for work in self.works.values() for row in work.rows}

    @property
    def free_rows(self) -> int:
        return self.max_rows - sum(len(work.rows) for work in self.works.values())

    @property
    def active(self) -> list[Work]:
        return [work for work in self.works.values() if work.rows]

    @property
    def busy(self) -> bool:
        """Something is in a row or on its way into one; the rest is only being published."""
        return any(work.rows or work.waiting for work in self.works.values())

    def room(self) -> int:
        """How many more images are worth taking from the queue now."""
        if any(work.suspect for work in self.works.values()):
            return 0
        return self.free_rows - sum(len(work.waiting) for work in self.works.values())

    def add(self, lease: Lease, taken_at: float) -> Work:
        stale = self.works.get(lease.job_id)
        if stale is not None:
            # We had lost the job and got it again before noticing; the loop still has to free the stale rows.
            stale.lost = True
            self.works[f"{lease.job_id}#{stale.lease.token}"] = self.works.pop(lease.job_id)
        work = Work.of(lease, taken_at)
        self.works[lease.job_id] = work
        return work

    def remove(self, work: Work) -> None:
        """By identity: after a lost lease two works may bear the same job id for a moment."""
        self.works = {key: other for key, other in self.works.items() if other is not work}

    def next_images(self) -> list[tuple[Work, int]]:
        """Images to admit before the next step, first come first served."""
        candidates = [work for work in self.works.values() if work.waiting]
        suspects = [work for work in self.works.values() if work.suspect and (work.waiting or work.rows)]
        if suspects:
            alone = next((work for work in suspects if work.rows), suspects[0])
            if any(work is not alone for work in self.active):
                return []  # neighbours finish first
            candidates = [alone] if alone.waiting else []
        free = self.free_rows
        return [(work, index) for work in candidates for index in work.waiting][:free]

    def seat(self, work: Work, index: int, row: int) -> None:
        work.waiting.remove(index)
        work.rows[row] = index
        work.started = True

    def unseat(self, work: Work, row: int, *, again: bool) -> int:
        """Take an image off its row; `again` puts it back in front of the line."""
        index = work.rows.pop(row)
        if again:
            work.waiting.appendleft(index)
            work.steps_done[index] = 0
        return index
