"""A job that this worker holds: which of its images wait, are being admitted, run on a row, or are complete."""

from asyncio import Task
from collections import deque
from dataclasses import dataclass, field

from server.images.compositing import Source
from server.jobs import JobError, Lease, Output
from server.telemetry.job_trace import JobTrace
from server.worker.engine.protocol import RowRequest

UNLIMITED = 1 << 30


@dataclass(slots=True, eq=False)
class HeldJob:
    """A leased job and the progress of its images."""

    lease: Lease
    taken_at: float  #: on the worker's monotonic clock
    waiting: deque[int]  #: image indices without a row yet
    cohort: int | None = None  #: its quarantine group
    row_limit: int = UNLIMITED  #: most of its images in rows together; halved when they fail together
    admitting: set[int] = field(default_factory=set)  #: indices of images that the engine was asked to admit
    rows: dict[int, int] = field(default_factory=dict)  #: row -> image index
    steps_done: dict[int, int] = field(default_factory=dict)  #: image index -> AR steps
    snapshots: dict[int, bytes] = field(default_factory=dict)  #: image index -> state to resume from
    pausing: set[int] = field(default_factory=set)  #: rows that the engine was asked to pause
    paused: dict[int, int] = field(default_factory=dict)  #: waiting image that was preempted -> its turn to resume
    pauses: dict[int, int] = field(default_factory=dict)  #: image index -> how often it was preempted
    outputs: dict[int, Output] = field(default_factory=dict)
    last_preview: dict[int, Task[None]] = field(default_factory=dict)  #: image index -> its latest preview on its way
    source: Source | None = None  #: the image that an edit or a variation starts from
    encode_s: float = 0.0
    predict_s: float = 0.0
    batch_peak: int = 0
    prompt_tokens: int = 0
    preparing: bool = False  #: its source image and what an earlier attempt saved are being loaded
    started: bool = False
    canceled: bool = False
    lost: bool = False
    failure: JobError | None = None
    interrupted: bool = False  #: something else than the job fails: it is requeued, and the attempt does not count
    closing: bool = False  #: its final state is being written; nothing else may touch it
    trace: JobTrace = field(init=False)
    preview_steps: tuple[int, ...] = field(init=False)  #: computed once, because every step reads it

    def __post_init__(self) -> None:
        self.preview_steps, self.trace = self.lease.input.preview_steps, JobTrace(self.lease)

    @property
    def complete(self) -> bool:
        """Every image has left its row and its file is stored."""
        return len(self.outputs) == self.lease.input.n

    @property
    def leaving(self) -> bool:
        """It has ended, or ends elsewhere: what is still stored for it would be of no use."""
        return self.closing or self.lost or self.canceled

    @property
    def active(self) -> bool:
        """At least one of its images is on a row, or on its way to one."""
        return bool(self.rows or self.admitting)

    @property
    def admissible(self) -> bool:
        """Some of its images wait for a row and may have one."""
        return bool(self.waiting) and not (self.preparing or self.closing or self.lost or self.canceled)

    @property
    def work_left(self) -> int:
        """Row-steps until the job is done."""
        return max(0, self.lease.input.work - sum(self.steps_done.values()))

    def request(self, index: int) -> RowRequest:
        return RowRequest.of(self.lease.input, index, self.source.known if self.source else None)
