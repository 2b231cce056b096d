"""The job as it travels through Redis: input, states, outputs, errors and leases, all JSON."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from server.errors import UnreadableRecord
from server.records import UNREADABLE, decode, finite, read_json, shallow, skip
from server.sampling import SAMPLING_FIELDS, Sampling

#: Error code of a job that no worker can complete, however many attempts it gets.
IMPOSSIBLE = "impossible_request"
_SAMPLING = frozenset(SAMPLING_FIELDS)
#: Priority classes, first to last. A class is served while those before it are empty; see lua/take.lua.
PRIORITIES = ("high", "normal", "low")


class JobState(StrEnum):
    """queued -> starting -> processing -> one of the four terminal states."""

    QUEUED = "queued"  #: accepted, waiting for a worker
    STARTING = "starting"  #: leased by a worker, no row yet
    PROCESSING = "processing"  #: at least one image is being decoded
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"  #: by its caller, or because its deadline passed while it ran
    ABORTED = "aborted"  #: its deadline passed before a worker began

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.ABORTED)


@dataclass(frozen=True, slots=True)
class Edit:
    """How a job uses its source image, which is stored under its own key until the job ends."""

    source: str  #: id of the job whose request carried the image; a replay refers to the first job
    sha256: str  #: of the image and its mask at the model's size
    kept_tokens: int | None = None  #: number of tokens that a variation keeps; None for an edit, whose mask decides
    feather: int = 0  #: width in pixels of the blend from old to new, inside the mask

    @property
    def kind(self) -> str:
        return "edit" if self.kept_tokens is None else "variation"

    def recipe(self) -> dict[str, Any]:
        """The fields that a finished file's metadata records."""
        return {name: value for name, value in shallow(self).items() if name != "source"}


@dataclass(frozen=True, slots=True)
class JobInput:
    """A fully resolved request: every default is filled in before the job enters the queue."""

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
    partial_images: int = 0  #: number of previews of each image while it is decoded
    owner: str = ""  #: name of the API key; only its holder may see the job
    result_ttl_s: int | None = None  #: how long the ended job is kept; None: FLUID_RESULT_TTL_S
    webhook: str = ""  #: URL to notify of the end, if any
    batch: str = ""  #: id of the batch that the job is a line of, if any
    edit: Edit | None = None
    negative_prompt: str = ""  #: what guidance steers away from
    background: str = "opaque"  #: or transparent: images with alpha

    @property
    def caller(self) -> str:
        """The caller whose fair share the job uses: the API key's name, or without keys the `user` of the request."""
        return self.owner or self.user or ""

    @property
    def channels(self) -> int:
        """Bytes per pixel, of its source image too."""
        return 4 if self.background == "transparent" else 3

    @property
    def work(self) -> int:
        """Size of the job in row-steps: one row for one autoregressive step."""
        return self.n * self.sampling.num_inference_steps

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The steps after which previews are sent: evenly spaced, the first one after a third of them at the latest."""
        parts = max(2, self.partial_images) + 1
        steps = self.sampling.num_inference_steps
        shown = (round(steps * (i + 1) / parts) for i in range(self.partial_images))
        return tuple(dict.fromkeys(step for step in shown if 0 < step < steps))

    def seed_of(self, index: int) -> int:
        """Seed of image `index`, which is seed + index, so each image of a request can be reproduced alone."""
        return self.seed + index

    def parameters(self) -> dict[str, Any]:
        """Every parameter in one flat mapping, as callers write and read them."""
        flat: dict[str, Any] = {}
        for name, value in shallow(self).items():
            flat |= shallow(value) if name == "sampling" else {name: value}
        flat["edit"] = shallow(self.edit) if self.edit else None
        return flat

    def to_json(self) -> str:
        return json.dumps(self.parameters(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "JobInput":
        """Decode the record's field. Raises one of records.UNREADABLE."""
        flat = read_json(text)
        values = {name: value for name, value in flat.items() if name not in _SAMPLING}
        values["sampling"] = Sampling.from_mapping(flat)
        values["edit"] = decode(Edit, values["edit"]) if values.get("edit") else None
        return decode(cls, values)


@dataclass(frozen=True, slots=True)
class Output:
    """One finished image; its bytes are stored under their own key."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    size_bytes: int
    sha256: str
    token: int = 1  #: of the attempt that generated it; part of its file's key
    location: str = ""  #: name of its object in the store of FLUID_RESULTS; "" if its file is in Redis


@dataclass(frozen=True, slots=True)
class Resume:
    """Progress that an earlier attempt saved: finished images, and snapshots of unfinished rows, by image index."""

    outputs: Mapping[int, Output] = field(default_factory=dict)
    snapshots: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def from_fields(cls, raw: Mapping[bytes, bytes]) -> "Resume":
        """Decode what is readable of a job's progress; an image whose entry is not starts over."""
        outputs, snapshots = {}, {}
        for name, value in raw.items():
            kind, _, index = name.partition(b":")
            try:
                if kind == b"output":
                    outputs[int(index)] = decode(Output, read_json(value))
                elif kind == b"snapshot":
                    snapshots[int(index)] = value
            except UNREADABLE as error:
                skip("saved progress", error)
        return cls(outputs, snapshots)


@dataclass(frozen=True, slots=True)
class JobMetrics:
    """Time spent per stage, in seconds; batch_size is the most rows that shared a step with this job."""

    queue_time: float
    predict_time: float
    encode_time: float
    total_time: float
    batch_size: int
    prompt_tokens: int = 0
    kernels: str = ""  #: implementation of the model's innermost loop: torch or triton


@dataclass(frozen=True, slots=True)
class JobError:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its record in Redis describes it."""

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
    image: bytes | None = None  #: its only image, where that came with the record

    @classmethod
    def from_fields(cls, raw: Mapping[str, str], known: JobInput | None = None) -> "JobRecord":
        """Decode the fields of the job's hash, except the input if it is `known`.

        Raises:
            UnreadableRecord: it has a state, or a value, that this version does not know.
        """
        try:
            return cls._decode(raw, known)
        except UNREADABLE as error:
            raise UnreadableRecord(
                f"Job {raw.get('id', '')} was written by another version of this service and cannot be read here "
                f"({type(error).__name__}).",
                retry_after_s=5,
            ) from error

    @classmethod
    def _decode(cls, raw: Mapping[str, str], known: JobInput | None) -> "JobRecord":

        def optional(name: str) -> float | None:
            return finite(raw[name]) if raw.get(name) else None

        error = read_json(raw["error"]) if raw.get("error") else None
        metrics = read_json(raw["metrics"]) if raw.get("metrics") else None
        return cls(
            id=raw["id"],
            state=JobState(raw["state"]),
            input=known or JobInput.from_json(raw["input"]),
            kind=raw["kind"],
            created_at=finite(raw["created_at"]),
            sequence=int(raw["sequence"]),
            attempt=int(raw["attempt"]),
            token=int(raw["token"]),
            step=int(raw.get("step", 0)),
            started_at=optional("started_at"),
            completed_at=optional("completed_at"),
            expires_at=optional("expires_at"),
            cancel_requested=raw.get("cancel_requested") == "1",
            outputs=tuple(decode(Output, o) for o in read_json(raw.get("outputs") or "[]")),
            error=decode(JobError, error) if error else None,
            metrics=decode(JobMetrics, metrics) if metrics else None,
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's right to finish one job. Its token is the fence: the token of any other attempt is rejected."""

    job_id: str
    token: int
    attempt: int
    input: JobInput
    created_at: float
    started_at: float
    suspect: bool = False  #: failed before, or in the second half of its attempts: runs alone, to spare other jobs
    resumable: bool = False  #: an earlier attempt saved progress
    trace: str = ""  #: traceparent of the request, if it is sampled

    @property
    def queue_s(self) -> float:
        """Seconds from acceptance to this attempt; 0 if Redis' clock was set back in between."""
        return max(0.0, self.started_at - self.created_at)


def new_job_id() -> str:
    return f"job_{secrets.token_hex(12)}"
