"""Who asked for what, what they were told and shown, and whether it holds together. No clock, no network.

Every submission carries a label in its `user` field, so that a request whose connection died before the answer is
neither counted lost nor ignored: if a job with its label exists, it was accepted and is held to the promise.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobRecord, JobState
from server.model_info import ModelInfo
from server.worker.engine.fake import fake_image
from server.worker.engine.protocol import RowRequest


@dataclass
class Submission:
    """One request, and everything that its client and the auditor ever saw of it."""

    label: str
    body: dict[str, Any]
    ends: set[str] = field(default_factory=lambda: {"succeeded"})  # how it may end
    told: set[str] = field(default_factory=set)  # ids that came with a 2xx
    gone: set[str] = field(default_factory=set)  # ids that the service did not know when asked later
    seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # terminal states by id, as they came
    drawn: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))  # hashes of pixels by image index
    missing: set[int] = field(default_factory=set)  # images of a job that succeeded that could not be had

    def saw(self, job_id: str, state: str) -> None:
        """A state as some answer told it; what comes after an end matters too."""
        states = self.seen[job_id]
        if (states or JobState(state).terminal) and (not states or states[-1] != state):
            states.append(state)

    def saw_picture(self, index: int, file: bytes) -> None:
        self.drawn[index].add(digest(Image.open(io.BytesIO(file)).tobytes()))


@dataclass
class Verdict:
    """What the books say. `lost` and `duplicates` break the promise; bad luck can explain what is `unexpected`."""

    submitted: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    found_by_label: int = 0
    never_arrived: int = 0


class Ledger:
    """All submissions by label."""

    def __init__(self) -> None:
        self.entries: dict[str, Submission] = {}

    def add(self, submission: Submission) -> Submission:
        submission.body["user"] = submission.label
        self.entries[submission.label] = submission
        return submission

    def judge(self, records: Iterable[JobRecord], model: ModelInfo) -> Verdict:
        """Compare what clients were told with every job that the service has."""
        verdict, jobs = Verdict(), defaultdict(list)
        for record in records:
            jobs[record.input.user or ""].append(record)
        for label in jobs.keys() - self.entries.keys():
            verdict.duplicates += [f"{record.id}: nobody asked for it (label {label!r})" for record in jobs[label]]
        for label, entry in self.entries.items():
            self._judge_one(entry, jobs.get(label, []), model, verdict)
        return verdict

    def _judge_one(self, entry: Submission, records: list[JobRecord], model: ModelInfo, verdict: Verdict) -> None:
        missing = entry.told - {record.id for record in records}
        verdict.lost += [f"{job_id}: accepted, and now there is no such job" for job_id in missing]
        verdict.lost += [f"{job_id}: accepted, and later answered with 404" for job_id in entry.gone - missing]
        if not records:
            verdict.submitted += len(missing)
            verdict.never_arrived += not missing
            return
        verdict.submitted += 1
        verdict.found_by_label += not entry.told
        if len(records) > 1 or len(entry.told) > 1:
            verdict.duplicates.append(f"{entry.label}: one request, jobs {[r.id for r in records]}, told {entry.told}")
        record = records[0]
        verdict.states[str(record.state)] += 1
        if not record.state.terminal:
            verdict.lost.append(f"{record.id}: still {record.state} at the end")
        elif record.state not in entry.ends:
            why = record.error.message if record.error else "no reason given"
            verdict.unexpected.append(f"{record.id}: {entry.body['prompt']!r} {record.state}: {why}")
        for job_id, states in entry.seen.items():
            if job_id == record.id and {*states, str(record.state)} != {str(record.state)}:
                verdict.duplicates.append(f"{job_id}: ended more than once: {[*states, str(record.state)]}")
        self._judge_pictures(entry, record, model, verdict)

    def _judge_pictures(self, entry: Submission, record: JobRecord, model: ModelInfo, verdict: Verdict) -> None:
        if record.state is not JobState.SUCCEEDED:
            if entry.drawn:
                verdict.duplicates.append(f"{record.id}: pictures were visible, but it {record.state}")
            return
        expected = expected_digests(entry.body, model)
        for index, right in enumerate(expected):
            if entry.drawn[index] - {right}:
                verdict.duplicates.append(f"{record.id}: image {index} is not the picture of its prompt and seed")
            if index in entry.missing or not entry.drawn[index]:
                verdict.lost.append(f"{record.id}: image {index} cannot be had")
        if len(record.outputs) != len(expected):
            verdict.lost.append(f"{record.id}: {len(record.outputs)} of {len(expected)} images")


def expected_digests(body: dict[str, Any], model: ModelInfo) -> list[str]:
    """Hashes of the pixels that the fake engine draws for what the client sent: the only ones that may be seen."""
    job, _ = resolve(ImageRequest.model_validate(body), {model.id: model}, model.id)
    return [digest(fake_image(RowRequest.of(job, index))) for index in range(job.n)]


def digest(pixels: bytes) -> str:
    return hashlib.sha256(pixels).hexdigest()
