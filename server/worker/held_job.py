"""A job that this worker holds: which of its images wait, run on a row, or are done."""

from collections import deque
from dataclasses import dataclass, field

from server.images.compositing import Source
from server.jobs import JobError, Lease, Output
from server.worker.engine.protocol import RowRequest

MAX_AT_ONCE = 1 << 30


@dataclass(slots=True, eq=False)
class HeldJob:
    """A job that this worker holds, and how far its images are."""

    lease: Lease
    taken_at: float  #: on the worker's own clock
    waiting: deque[int]  #: image indices without a row yet
    cohort: int | None = None  #: its quarantine
    at_once: int = MAX_AT_ONCE  #: most of its images in rows together; halved when they fail together
    rows: dict[int, int] = field(default_factory=dict)  #: row -> image index
    steps_done: dict[int, int] = field(default_factory=dict)  #: image index -> AR steps
    snapshots: dict[int, bytes] = field(default_factory=dict)  #: image index -> where it can go on
    outputs: dict[int, Output] = field(default_factory=dict)
    source: Source | None = None  #: the picture that an edit starts from
    encode_s: float = 0.0
    predict_s: float = 0.0
    batch_peak: int = 0
    prompt_tokens: int = 0
    started: bool = False
    canceled: bool = False
    lost: bool = False
    failure: JobError | None = None
    closing: bool = False  #: its end is being written; nothing else may touch it
    preview_steps: tuple[int, ...] = field(init=False)  #: of its input, which every step would work out again

    def __post_init__(self) -> None:
        self.preview_steps = self.lease.input.preview_steps

    @property
    def drawn(self) -> bool:
        """Every image has left its row and its file is stored."""
        return len(self.outputs) == self.lease.input.n

    @property
    def work_left(self) -> int:
        """Row-steps until it is done."""
        return max(0, self.lease.input.work - sum(self.steps_done.values()))

    def request(self, index: int) -> RowRequest:
        return RowRequest.of(self.lease.input, index, self.source.known if self.source else None)
