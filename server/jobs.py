"""What travels through Redis: the job, its states, its outputs and what workers say; all JSON."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from server.sampling import SAMPLING_FIELDS, Sampling

#: Error code of a job that no worker can draw, however often it is tried.
IMPOSSIBLE = "impossible_request"
#: Who goes first, first to last. A class is served when those before it have nobody waiting; see lua/take.lua.
PRIORITIES = ("high", "normal", "low")


class JobState(StrEnum):
    """queued -> starting -> processing -> one of the four terminal states."""

    QUEUED = "queued"  #: accepted, in line
    STARTING = "starting"  #: leased by a worker, no row yet
    PROCESSING = "processing"  #: at least one image is being decoded
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"  #: by its caller, or because its deadline passed while it was drawn
    ABORTED = "aborted"  #: its deadline passed before a worker began

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.ABORTED)


@dataclass(frozen=True, slots=True)
class Edit:
    """That a job starts from a picture. The picture itself lies under its own key until the job ends."""

    source: str  #: the job that brought it; a replayed one refers to the first
    sha256: str  #: of the picture and its mask at the model's size
    kept_tokens: int | None = None  #: of a variation: how many stay; None: its mask says which
    feather: int = 0  #: pixels inside the mask over which old goes over into new

    @property
    def kind(self) -> str:
        return "edit" if self.kept_tokens is None else "variation"

    def recipe(self) -> dict[str, Any]:
        """What a finished file says of it."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


@dataclass(frozen=True, slots=True)
class JobInput:
    """A request with nothing left open: every default is resolved before it enters the queue."""

    prompt: str
    model: str
    n: int
    width: int
    height: int
    quality: str
    output_format: str
    output_compression: int
    seed: int
    sampling: Sampling
    user: str | None = None
    priority: str = "normal"
    deadline_ms: int | None = None
    partial_images: int = 0  #: previews of each picture while it is decoded
    owner: str = ""  #: the name of the API key; who may see the job
    result_ttl_s: int | None = None  #: how long it is kept when it has ended; None: FLUID_RESULT_TTL_S
    webhook: str = ""  #: who is told of its end
    batch: str = ""  #: the batch that it is a line of
    edit: Edit | None = None

    @property
    def caller(self) -> str:
        """Whose share of the service the job uses: a key's, or without keys whatever `user` says."""
        return self.owner or self.user or ""

    @property
    def work(self) -> int:
        """Its size in row-steps: one row for one autoregressive step."""
        return self.n * self.sampling.num_inference_steps

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """After which steps a picture is shown half done: evenly spaced, the first one after a third at the latest."""
        parts = max(2, self.partial_images) + 1
        steps = self.sampling.num_inference_steps
        shown = (round(steps * (i + 1) / parts) for i in range(self.partial_images))
        return tuple(dict.fromkeys(step for step in shown if 0 < step < steps))

    def seed_of(self, index: int) -> int:
        """Image i draws with seed + i, so each image of a request can be made again alone."""
        return self.seed + index

    def parameters(self) -> dict[str, Any]:
        """Every parameter in one flat mapping, as callers write and read them."""
        flat: dict[str, Any] = {}
        for name, value in asdict(self).items():
            flat |= value if name == "sampling" else {name: value}
        return flat

    def to_json(self) -> str:
        return json.dumps(self.parameters(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "JobInput":
        flat = json.loads(text)
        values = {name: value for name, value in flat.items() if name not in SAMPLING_FIELDS}
        values["sampling"] = Sampling.from_mapping(flat)
        values["edit"] = Edit(**values["edit"]) if values.get("edit") else None
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Output:
    """One finished picture; its bytes lie under their own key."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    size_bytes: int
    sha256: str
    token: int = 1  #: of the try that drew it; part of its key


@dataclass(frozen=True, slots=True)
class Resume:
    """What an earlier try left of a job: finished images, and rows half done."""

    outputs: Mapping[int, Output] = field(default_factory=dict)
    snapshots: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, raw: Mapping[bytes, bytes]) -> "Resume":
        outputs, snapshots = {}, {}
        for name, value in raw.items():
            kind, _, index = name.partition(b":")
            if kind == b"output":
                outputs[int(index)] = Output(**json.loads(value))
            elif kind == b"snapshot":
                snapshots[int(index)] = value
        return cls(outputs, snapshots)


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """Where the time went, in seconds; batch_size is the most rows that shared a step with this job."""

    queue_time: float
    predict_time: float
    encode_time: float
    total_time: float
    batch_size: int
    prompt_tokens: int = 0
    kernels: str = ""  #: what ran the model's innermost loop: torch, triton, persistent


@dataclass(frozen=True, slots=True)
class JobError:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as Redis holds it now."""

    id: str
    state: JobState
    input: JobInput
    kind: str
    created_at: float
    sequence: int
    attempt: int = 0
    token: int = 0
    step: int = 0
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    cancel_requested: bool = False
    outputs: tuple[Output, ...] = ()
    error: JobError | None = None
    metrics: JobMetrics | None = None

    @classmethod
    def from_fields(cls, raw: Mapping[str, str]) -> "JobRecord":
        """Decode the fields of the job's hash."""

        def optional(name: str) -> float | None:
            return float(raw[name]) if raw.get(name) else None

        error = json.loads(raw["error"]) if raw.get("error") else None
        metrics = json.loads(raw["metrics"]) if raw.get("metrics") else None
        return cls(
            id=raw["id"],
            state=JobState(raw["state"]),
            input=JobInput.from_json(raw["input"]),
            kind=raw["kind"],
            created_at=float(raw["created_at"]),
            sequence=int(raw["sequence"]),
            attempt=int(raw["attempt"]),
            token=int(raw["token"]),
            step=int(raw.get("step", 0)),
            started_at=optional("started_at"),
            completed_at=optional("completed_at"),
            expires_at=optional("expires_at"),
            cancel_requested=raw.get("cancel") == "1",
            outputs=tuple(Output(**o) for o in json.loads(raw.get("outputs") or "[]")),
            error=JobError(**error) if error else None,
            metrics=JobMetrics(**metrics) if metrics else None,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to finish one job. The token fences: an older one is refused at the finish."""

    job_id: str
    token: int
    attempt: int
    input: JobInput
    created_at: float
    started_at: float
    suspect: bool = False  #: failed before, or on the later half of its tries: runs alone, for its neighbours' sake
    resumable: bool = False  #: an earlier try left something to go on from


def new_job_id() -> str:
    return f"job_{secrets.token_hex(12)}"
