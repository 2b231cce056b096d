"""Expected outcomes: what each client requested and observed, and the audit against it. No clock, no network.

Every submission carries a label in its `user` field. It identifies requests whose connection died before the response:
if a job with that label exists, the request was accepted and its job must keep the promise.

A failover to a replica that lags undoes what clients were told in the last second, by design. So what they observe in a
`rollback` is provisional: a job that was accepted in it may disappear, and a state that was reported in it may be left.
Images that were shown in it must still be the right ones, and everything else must hold. With FLUID_REPLICAS a job that
was accepted in it may not disappear either: `Ledger(replicated=True)`.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobRecord, JobState
from server.model_info import ModelInfo
from server.worker.engine.fake import fake_image
from server.worker.engine.protocol import RowRequest

#: A response to a request that was served in a rollback may arrive this much later.
LATE_S = 3.0


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
    provisional: set[str] = field(default_factory=set)  # job ids that came with a 2xx in a rollback
    shown: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))  # hashes of pixels seen in a rollback
    in_rollback: Callable[[], bool] = lambda: False
    replicated: bool = False

    def observe_acceptance(self, job_id: str) -> None:
        (self.provisional if self.in_rollback() and not self.replicated else self.accepted).add(job_id)

    def observe_missing(self, index: int) -> None:
        """Record an image that could not be fetched, if its job is known to have succeeded for good."""
        if not self.in_rollback() and any("succeeded" in states for states in self.states.values()):
            self.missing.add(index)

    def observe_state(self, job_id: str, state: str) -> None:
        """Record a state from a response; states reported after a terminal one are recorded too."""
        if self.in_rollback():
            return
        states = self.states[job_id]
        if (states or JobState(state).terminal) and (not states or states[-1] != state):
            states.append(state)

    def observe_image(self, index: int, file: bytes) -> None:
        (self.shown if self.in_rollback() else self.digests)[index].add(digest(Image.open(io.BytesIO(file)).tobytes()))


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
    rolled_back: int = 0  # accepted in a rollback, and gone


class Ledger:
    """All submissions by label."""

    def __init__(self, *, replicated: bool = False) -> None:
        self.entries: dict[str, Submission] = {}
        self._replicated = replicated
        self._rollbacks = 0
        self._provisional_until = 0.0

    def add(self, submission: Submission) -> Submission:
        submission.body["user"] = submission.label
        submission.in_rollback, submission.replicated = self.in_rollback, self._replicated
        self.entries[submission.label] = submission
        return submission

    @contextmanager
    def rollback(self) -> Iterator[None]:
        """What is observed in the block, and LATE_S later, may be undone by a failover at its end."""
        self._rollbacks += 1
        try:
            yield
        finally:
            self._rollbacks -= 1
            self._provisional_until = time.monotonic() + LATE_S

    def in_rollback(self) -> bool:
        return self._rollbacks > 0 or time.monotonic() < self._provisional_until

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
        verdict.lost += [
            f"{job_id}: accepted, and later answered with 404"
            for job_id in entry.not_found - missing - entry.provisional
        ]
        if not records:
            verdict.submitted += len(missing)
            verdict.rolled_back += len(entry.provisional)
            verdict.never_arrived += not (missing or entry.provisional)
            return
        verdict.submitted += 1
        verdict.found_by_label += not entry.accepted
        if len(records) > 1 or len(entry.accepted | entry.provisional) > 1:
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
        expected = expected_digests(entry.body, model) if entry.shown or record.state is JobState.SUCCEEDED else []
        if any(entry.shown[index] - {right} for index, right in enumerate(expected)):
            verdict.duplicates.append(f"{record.id}: an image before a failover was not that of its prompt and seed")
        if record.state is not JobState.SUCCEEDED:
            if entry.digests:
                verdict.duplicates.append(f"{record.id}: images were visible, but the job {record.state}")
            return
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
