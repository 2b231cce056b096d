"""Expected outcomes: what each client requested and observed, and the audit against it. No clock, no network.

Every submission carries a label in its `user` field. It identifies requests whose connection died before the response:
if a job with that label exists, the request was accepted and its job must keep the promise.
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
    """One request, and everything that its client and the auditor observed of it."""

    label: str
    body: dict[str, Any]
    allowed: set[str] = field(default_factory=lambda: {"succeeded"})  # terminal states that are correct for it
    accepted: set[str] = field(default_factory=set)  # job ids that came with a 2xx
    not_found: set[str] = field(default_factory=set)  # job ids that later got a 404
    states: dict[str, list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )  # by id, from the first terminal one
    digests: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))  # hashes of pixels by image index
    missing: set[int] = field(default_factory=set)  # images of a succeeded job that could not be fetched

    def observe_state(self, job_id: str, state: str) -> None:
        """Record a state from a response; states reported after a terminal one are recorded too."""
        states = self.states[job_id]
        if (states or JobState(state).terminal) and (not states or states[-1] != state):
            states.append(state)

    def observe_image(self, index: int, file: bytes) -> None:
        self.digests[index].add(digest(Image.open(io.BytesIO(file)).tobytes()))


@dataclass
class Verdict:
    """Result of the comparison. `lost` and `duplicates` break the promise; `unexpected` may be bad luck."""

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
        """Compare what clients observed with every job that the service has."""
        verdict, jobs = Verdict(), defaultdict(list)
        for record in records:
            jobs[record.input.user or ""].append(record)
        for label in jobs.keys() - self.entries.keys():
            verdict.duplicates += [f"{record.id}: never requested (label {label!r})" for record in jobs[label]]
        for label, entry in self.entries.items():
            self._judge_one(entry, jobs.get(label, []), model, verdict)
        return verdict

    def _judge_one(self, entry: Submission, records: list[JobRecord], model: ModelInfo, verdict: Verdict) -> None:
        missing = entry.accepted - {record.id for record in records}
        verdict.lost += [f"{job_id}: accepted, but now there is no such job" for job_id in missing]
        verdict.lost += [f"{job_id}: accepted, and later answered with 404" for job_id in entry.not_found - missing]
        if not records:
            verdict.submitted += len(missing)
            verdict.never_arrived += not missing
            return
        verdict.submitted += 1
        verdict.found_by_label += not entry.accepted
        if len(records) > 1 or len(entry.accepted) > 1:
            ids = [record.id for record in records]
            verdict.duplicates.append(f"{entry.label}: one request, jobs {ids}, accepted as {entry.accepted}")
        record = records[0]
        verdict.states[str(record.state)] += 1
        if not record.state.terminal:
            verdict.lost.append(f"{record.id}: still {record.state} at the end")
        elif record.state not in entry.allowed:
            reason = record.error.message if record.error else "no reason given"
            verdict.unexpected.append(f"{record.id}: {entry.body['prompt']!r} {record.state}: {reason}")
        for job_id, states in entry.states.items():
            if job_id == record.id and {*states, str(record.state)} != {str(record.state)}:
                verdict.duplicates.append(f"{job_id}: ended more than once: {[*states, str(record.state)]}")
        self._judge_images(entry, record, model, verdict)

    def _judge_images(self, entry: Submission, record: JobRecord, model: ModelInfo, verdict: Verdict) -> None:
        if record.state is not JobState.SUCCEEDED:
            if entry.digests:
                verdict.duplicates.append(f"{record.id}: images were visible, but the job {record.state}")
            return
        expected = expected_digests(entry.body, model)
        for index, right in enumerate(expected):
            if entry.digests[index] - {right}:
                verdict.duplicates.append(f"{record.id}: image {index} is not that of its prompt and seed")
            if index in entry.missing or not entry.digests[index]:
                verdict.lost.append(f"{record.id}: image {index} could not be fetched")
        if len(record.outputs) != len(expected):
            verdict.lost.append(f"{record.id}: {len(record.outputs)} of {len(expected)} images")


def expected_digests(body: dict[str, Any], model: ModelInfo) -> list[str]:
    """Hash the pixels that the fake engine generates for the client's own request body; only these may be visible."""
    job, _ = resolve(ImageRequest.model_validate(body), {model.id: model}, model.id)
    return [digest(fake_image(RowRequest.of(job, index))) for index in range(job.n)]


def digest(pixels: bytes) -> str:
    return hashlib.sha256(pixels).hexdigest()
