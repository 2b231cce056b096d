"""The chaos test detects every breach of the queue's promise: each is planted here, and must be found."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from benchmarks.chaos.audit import get_patiently
from benchmarks.chaos.ledger import Ledger, Submission, Verdict
from benchmarks.chaos.report import failures, figures, lateness, percentile, scraped_total
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobError, JobInput, JobRecord, JobState, Output
from server.model_info import ModelInfo
from server.worker.engine.fake import SIZE, FakeEngine, fake_image
from server.worker.engine.protocol import RowRequest

MODEL = ModelInfo.from_mapping(FakeEngine(1, 0.0).info())


def _job(**changes: Any) -> JobInput:
    body = {"prompt": "a cat", "seed": 5, "n": 2, "user": "label-1"} | changes
    return resolve(ImageRequest.model_validate(body), {"fake": MODEL}, "fake")[0]


def _file(job: JobInput, index: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", SIZE, fake_image(RowRequest.of(job, index))).save(buffer, "PNG")
    return buffer.getvalue()


def _record(state: JobState = JobState.SUCCEEDED, job_id: str = "job_1") -> JobRecord:
    outputs = tuple(Output(i, 5 + i, 32, 32, "png", 100, "0" * 64, 1) for i in range(2))
    return JobRecord(job_id, state, _job(), "job", 0.0, 1, outputs=outputs if state is JobState.SUCCEEDED else ())


@pytest.fixture
def entry() -> Submission:
    """Return a submission that was accepted, succeeded, and had both images fetched."""
    entry = Submission("label-1", {"prompt": "a cat", "seed": 5, "n": 2})
    entry.accepted.add("job_1")
    for index in range(2):
        entry.observe_image(index, _file(_job(), index))
    return entry


def _judge(entry: Submission, *records: JobRecord) -> Verdict:
    ledger = Ledger()
    ledger.add(entry)
    return ledger.judge(records, MODEL)


def test_a_good_run_passes(entry: Submission) -> None:
    entry.observe_state("job_1", "queued")
    entry.observe_state("job_1", "succeeded")
    verdict = _judge(entry, _record())
    assert not (verdict.lost or verdict.duplicates or verdict.unexpected)
    assert (verdict.submitted, verdict.states["succeeded"]) == (1, 1)
    assert failures(verdict, []) == [] and lateness([0.5, 2.9], 2.0) == []


def test_a_job_that_disappeared_is_lost(entry: Submission) -> None:
    verdict = _judge(entry)
    assert verdict.lost and verdict.submitted == 1 and failures(verdict, [])


def test_a_404_for_an_accepted_job_is_a_loss_even_if_the_job_reappears(entry: Submission) -> None:
    entry.not_found.add("job_1")
    assert _judge(entry, _record()).lost


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.STARTING, JobState.PROCESSING])
def test_a_job_in_no_terminal_state_is_lost(state: JobState) -> None:
    entry = Submission("label-1", {"prompt": "a cat"})
    entry.accepted.add("job_1")
    assert "still" in _judge(entry, _record(state)).lost[0]


def test_a_missing_image_is_a_loss(entry: Submission) -> None:
    del entry.digests[1]
    assert "image 1" in _judge(entry, _record()).lost[0]


def test_an_image_that_disappears_between_two_fetches_is_a_loss(entry: Submission) -> None:
    entry.missing.add(0)
    assert _judge(entry, _record()).lost


def test_a_different_image_is_a_duplicate(entry: Submission) -> None:
    """The expected images once came from an engine that made unfinished images grey, so all of them matched."""
    entry.observe_image(0, _file(_job(seed=6), 0))
    assert "not that of its prompt and seed" in _judge(entry, _record()).duplicates[0]


def test_expected_images_come_from_the_request_and_not_from_the_job_record(entry: Submission) -> None:
    """A queue that mixed up two requests would faithfully generate what its own record says."""
    entry.body["prompt"] = "an apple"
    assert len(_judge(entry, _record()).duplicates) == 2


def test_two_jobs_for_one_request_are_duplicates(entry: Submission) -> None:
    assert "one request" in _judge(entry, _record(), _record(job_id="job_2")).duplicates[0]


def test_a_second_terminal_state_is_a_duplicate(entry: Submission) -> None:
    entry.observe_state("job_1", "canceled")
    entry.observe_state("job_1", "succeeded")
    assert "more than once" in _judge(entry, _record()).duplicates[0]


def test_leaving_a_terminal_state_is_a_duplicate(entry: Submission) -> None:
    """States reported after a terminal one are recorded too: "succeeded", then "processing"."""
    entry.observe_state("job_1", "succeeded")
    entry.observe_state("job_1", "processing")
    assert "more than once" in _judge(entry, _record()).duplicates[0]


def test_visible_images_of_a_job_that_did_not_succeed_are_duplicates(entry: Submission) -> None:
    assert "visible" in _judge(entry, _record(JobState.FAILED)).duplicates[0]


def test_a_job_that_was_never_requested_is_found(entry: Submission) -> None:
    stranger = replace(_record(job_id="job_9"), input=_job(user="unknown"))
    assert "never requested" in _judge(entry, _record(), stranger).duplicates[0]


def test_a_request_without_a_response_counts_if_its_job_exists() -> None:
    """It is neither lost nor ignored: a failed connection says nothing about the job."""
    verdict = _judge(Submission("label-1", {"prompt": "a cat"}), _record(JobState.PROCESSING))
    assert (verdict.submitted, verdict.found_by_label, len(verdict.lost)) == (1, 1, 1)
    verdict = _judge(Submission("label-1", {"prompt": "a cat"}))
    assert (verdict.submitted, verdict.never_arrived, verdict.lost) == (0, 1, [])


def test_unexpected_terminal_states_are_reported_separately() -> None:
    entry = Submission("label-1", {"prompt": "a cat"}, allowed={"succeeded", "canceled"})
    assert not _judge(entry, _record(JobState.CANCELED)).unexpected
    failed = replace(_record(JobState.FAILED), error=JobError("worker_lost", "three workers died"))
    verdict = _judge(entry, failed)
    assert "three workers died" in verdict.unexpected[0] and not verdict.lost


def test_gates(entry: Submission) -> None:
    verdict = _judge(entry, _record())
    assert "redelivery" in lateness([3.1], 2.0)[0] and lateness([], 2.0) == []
    assert failures(verdict, ["7 queued, 6 waiting"]) == ["counters: 7 queued, 6 waiting"]
    assert failures(replace(verdict, submitted=2), [])


def test_every_terminal_state_of_the_service_is_counted(entry: Submission) -> None:
    shown = figures(_judge(entry, _record()), [], [], [], "")
    assert all(str(state) in shown for state in JobState if state.terminal)


def test_counters_and_percentiles_are_computed() -> None:
    text = 'a_total{worker="x"} 2\na_total{worker="y"} 3\nab_total 9\n# a_total 100\n'
    assert scraped_total(text, "a_total") == 5 and scraped_total(text, "b_total") == 0
    values = [float(i) for i in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile([], 99)) == (50, 99, None)


def test_what_is_told_in_a_rollback_may_be_undone() -> None:
    """A failover loses the last second by design; blaming the service for it would hide real losses among them."""
    ledger = Ledger()
    gone, left = (ledger.add(Submission(f"label-{i}", {"prompt": "a cat", "seed": 5, "n": 2})) for i in (1, 2))
    left.observe_acceptance("job_2")
    with ledger.rollback():
        gone.observe_acceptance("job_1")
        left.observe_state("job_2", "canceled")
        left.observe_image(0, _file(_job(), 0))
        left.observe_missing(1)
    record = replace(_record(JobState.FAILED, "job_2"), input=_job(user="label-2"))
    verdict = ledger.judge([record], MODEL)
    assert (verdict.lost, verdict.duplicates, verdict.rolled_back, verdict.submitted) == ([], [], 1, 1)


def test_a_wrong_image_in_a_rollback_is_a_duplicate() -> None:
    ledger = Ledger()
    entry = ledger.add(Submission("label-1", {"prompt": "a cat", "seed": 5, "n": 2}))
    with ledger.rollback():
        entry.observe_image(0, _file(_job(seed=6), 0))
    assert "before a failover" in ledger.judge([_record(JobState.FAILED)], MODEL).duplicates[0]


def test_what_was_told_before_a_rollback_must_hold() -> None:
    ledger = Ledger()
    entry = ledger.add(Submission("label-1", {"prompt": "a cat", "seed": 5, "n": 2}))
    entry.observe_acceptance("job_1")
    entry.observe_state("job_1", "canceled")
    with ledger.rollback():
        pass
    assert ledger.judge([], MODEL).lost
    assert "more than once" in ledger.judge([_record(JobState.FAILED)], MODEL).duplicates[0]


def test_a_process_that_ends_unasked_and_an_internal_error_fail_the_run(entry: Submission) -> None:
    verdict = _judge(entry, _record())
    assert failures(verdict, [], ["a worker ended"], ["GET /x: 500"]) == ["ended: a worker ended", "5xx: GET /x: 500"]


@pytest.mark.anyio
@pytest.mark.parametrize(("answers", "status", "asked"), [([503, 503, 200], 200, 3), ([404, 200], 404, 1)])
async def test_the_audit_asks_again_after_a_503_alone(answers: list[int], status: int, asked: int) -> None:
    """On a machine with a load of 20, 46 images of 6,000 counted as lost because one of two answers was a 503."""
    left = list(answers)
    transport = httpx.MockTransport(lambda request: httpx.Response(left.pop(0)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        assert (await get_patiently(http, "/image")).status_code == status
    assert len(answers) - len(left) == asked


@pytest.mark.anyio
async def test_the_audit_is_not_patient_without_end() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(503))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        assert (await get_patiently(http, "/image", patience_s=0.0)).status_code == 503
