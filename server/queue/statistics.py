"""The queue in numbers: counts of jobs by state, and the place of a waiting one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.jobs import TERMINAL, JobState


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """Where a waiting job stands: jobs ahead of it, and their work in row-steps."""

    position: int
    work_ahead: float


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The queue in numbers, read at one moment; submitted = the sum of all states."""

    submitted: Mapping[str, int]
    states: Mapping[str, int] = field(default_factory=dict)
    redeliveries: int = 0
    fenced: int = 0
    dead_lettered: int = 0
    dead_letter_depth: int = 0
    oldest_age_s: float = 0.0
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict)  #: by model and priority, counted in the lines
    waiting_work: Mapping[str, int] = field(default_factory=dict)  #: row-steps, by model
    leases: int = 0  #: counted in the lists of leases
    kept: int = 0  #: ended jobs whose record is still there
    expired: int = 0  #: ended jobs whose record is gone

    @property
    def running(self) -> int:
        return sum(self.states.get(s.value, 0) for s in (JobState.STARTING, JobState.PROCESSING))

    @property
    def ended(self) -> int:
        return sum(self.states.get(s.value, 0) for s in TERMINAL)
