"""The queue against a plain-Python model, in any interleaving that hypothesis finds: same states, same order, same
replies, and counters that add up after every step."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from server.errors import QueueFull
from server.jobs import PRIORITIES, JobError, JobState, Lease, Output
from server.launcher.embedded_valkey import EmbeddedValkey
from server.model_info import ModelInfo
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue, LeaseRenewal, Preempting
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.queue.statistics import queue_counts
from server.settings import Settings
from server.worker.engine.fake import FakeEngine
from tests.server.harness import MODEL, empty, job_input, lapse
from tests.server.queue.queue_model import Job, QueueModel

WORKERS = ("w0", "w1", "w2")
MAX_QUEUE, MAX_ATTEMPTS = 12, 3


class QueueMachine(RuleBasedStateMachine):
    """Workers without an engine; every rule applies to the queue and to the model, and compares them."""

    valkey: EmbeddedValkey

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        own = Settings(redis_url=self.valkey.url, namespace=uuid.uuid4().hex)
        self.redis = connect(own.redis_url, SOCKET_TIMEOUT_S)
        limits = replace(own, max_attempts=MAX_ATTEMPTS, max_queue=MAX_QUEUE, ageing_s=1e6)
        self.queue, self.leases = JobQueue(self.redis, limits), LeaseQueue(self.redis, limits)
        info = ModelInfo.from_mapping(FakeEngine(1, 0).info())
        self.run(Registry(self.redis, own.namespace).publish_model(info))
        self.model = QueueModel(MAX_ATTEMPTS)
        self.given: list[tuple[str, Lease]] = []  # every lease ever granted, with its worker: lost ones included

    def run(self, awaitable: Any) -> Any:
        return self.loop.run(awaitable)

    def current(self, lease: Lease) -> Job | None:
        job = self.model.jobs[lease.job_id]
        return job if job.token == lease.token else None

    def grant(self, worker: str, lease: Lease) -> None:
        assert lease.token not in {known.token for _, known in self.given}, "two leases share a token"
        self.model.jobs[lease.job_id].token = lease.token
        self.given.append((worker, lease))

    def pick(self, data: st.DataObject) -> tuple[str, Lease]:
        return data.draw(st.sampled_from(self.given))

    # ---- the rules --------------------------------------------------------------------------------------

    @rule(priority=st.sampled_from(PRIORITIES), caller=st.sampled_from(("", "ann", "bob")), n=st.integers(1, 3))
    def enqueue(self, priority: str, caller: str, n: int) -> None:
        name = f"job{len(self.model.jobs)}"
        job = job_input(n=n, priority=priority, user=caller or None)
        full = sum(j.state == "queued" for j in self.model.jobs.values()) >= MAX_QUEUE
        if full:
            with pytest.raises(QueueFull):
                self.run(self.queue.enqueue(Submission(name, job, "job")))
            return
        for _ in range(2):  # repeated, as after a lost reply
            self.run(self.queue.enqueue(Submission(name, job, "job")))
        self.model.lines[priority].join(caller, self.model.waiting(priority))
        self.model.jobs[name] = Job(name, priority, caller, len(self.model.jobs), job.work)

    @rule(callers=st.lists(st.sampled_from(("", "ann", "bob")), min_size=2, max_size=6), takes=st.integers(1, 6))
    def rush(self, callers: list[str], takes: int) -> None:
        """Enqueue many jobs at once, so that callers have to share."""
        for n, caller in enumerate(callers):
            self.enqueue("normal", caller, 1 + n % 3)
        for _ in range(takes):
            self.take(WORKERS[0])

    @rule(worker=st.sampled_from(WORKERS))
    def take(self, worker: str) -> None:
        lease = self.run(self.leases.take(worker, MODEL))
        expected = self.model.expected_order()
        assert (lease.job_id if lease else None) == (expected.name if expected else None)
        if lease and expected:
            assert self.model.begin(expected, worker)
            assert lease.attempt == expected.attempt
            assert lease.resumable == expected.saved
            self.grant(worker, lease)

    @rule(
        worker=st.sampled_from(WORKERS),
        classes=st.sets(st.sampled_from(PRIORITIES)),
        but=st.sets(st.sampled_from(("", "ann", "bob"))),
        any_caller=st.booleans(),
    )
    def take_preempting(self, worker: str, classes: set[str], but: set[str], any_caller: bool) -> None:
        """Take as a worker does that has no free row."""
        wanted = {priority: Preempting(any_caller, True, sorted(but)) for priority in classes}
        lease = self.run(self.leases.take(worker, MODEL, preempting=wanted))
        expected = self.model.expected_order(classes, set() if any_caller else but)
        assert (lease.job_id if lease else None) == (expected.name if expected else None)
        if lease and expected:
            assert self.model.begin(expected, worker)
            self.grant(worker, lease)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def lapse_and_reclaim(self, data: st.DataObject, worker: str) -> None:
        """Let a lease lapse and any worker reclaim it, also its holder, which may know of the job or not."""
        heard = data.draw(st.booleans())
        _, lease = self.pick(data)
        job = self.model.jobs[lease.job_id]
        if job.state not in ("starting", "processing"):
            return
        self.run(lapse(self.queue, job.name))
        found = self.run(self.leases.reclaim(worker, MODEL, [job.name] if heard else [], count=5))
        if heard and job.holder == worker:  # no other worker was quicker: the holder keeps it
            assert found == []
        elif self.model.begin(job, worker):
            [again] = found
            assert (again.job_id, again.attempt) == (job.name, job.attempt)
            self.grant(worker, again)
        else:
            assert found == []

    @precondition(lambda self: self.given)
    @rule(data=st.data(), ending=st.sampled_from((JobState.SUCCEEDED, JobState.FAILED)))
    def finish(self, data: st.DataObject, ending: JobState) -> None:
        """Finish under any lease ever granted, so often a lost one."""
        _, lease = self.pick(data)
        error = JobError("e", "m") if ending is JobState.FAILED else None
        output = Output(0, 7, 32, 32, "png", 1, f"by {lease.token}", lease.token)
        files, outputs = ({}, []) if error else ({0: b"x"}, [output])
        wrote = self.run(self.leases.finish(lease, ending, error=error, outputs=outputs, files=files))
        job = self.current(lease)
        assert (wrote is None) == (job is None)
        if job is None:
            self.model.fenced += 1
        elif job.state in ("starting", "processing"):
            job.state = "canceled" if job.cancel else ending.value
            self.model.dead += job.state == "failed"
        assert job is None or wrote == job.state
        record = self.run(self.queue.get(lease.job_id))
        if record.state is JobState.SUCCEEDED:  # the one visible result is that of the attempt that was current
            assert [o.token for o in record.outputs] == [record.token]

    @precondition(lambda self: self.given)
    @rule(data=st.data(), guilty=st.booleans(), discard=st.booleans())
    def requeue(self, data: st.DataObject, guilty: bool, discard: bool) -> None:
        _, lease = self.pick(data)
        error = JobError("e", "m") if guilty else None
        answer = self.run(self.leases.requeue(lease, error=error, discard_progress=discard))
        job = self.current(lease)
        if job is None or job.state not in ("starting", "processing"):
            assert answer == "fenced"
            return
        job.token = 0
        if job.cancel:
            job.state = "canceled"
        elif guilty and job.attempt >= MAX_ATTEMPTS:
            job.state = "failed"
            self.model.dead += 1
        else:
            job.attempt -= not guilty
            job.saved &= not discard
            line = self.model.lines[job.priority]
            line.join(job.caller, self.model.waiting(job.priority))
            job.state = "queued"
            if not guilty:
                line.served[job.caller] -= job.work
        assert answer == job.state

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.model.jobs[data.draw(st.sampled_from(sorted(self.model.jobs)))]
        record = self.run(self.queue.cancel(job.name))
        if job.state == "queued":
            job.state = "canceled"
            job.token = 0
        elif job.state in ("starting", "processing"):
            job.cancel = True
        assert record.state == job.state

    @precondition(lambda self: self.given)
    @rule(data=st.data(), extend=st.booleans())
    def renew(self, data: st.DataObject, extend: bool) -> None:
        _, lease = self.pick(data)
        [answer] = self.run(self.leases.renew([LeaseRenewal(lease, True, 1)], extend=extend))
        job = self.current(lease)
        if job is None or job.state not in ("starting", "processing"):
            assert answer == "lost"
        else:
            assert answer == ("cancel" if job.cancel else "ok")
            job.state = "processing"

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        _, lease = self.pick(data)
        self.run(self.leases.save(lease, "weights", snapshots={0: str(lease.token).encode()}))
        job = self.current(lease)
        if job and job.state in ("starting", "processing"):
            job.saved = True
            assert self.run(self.leases.resume(lease, "weights")).snapshots == {0: str(lease.token).encode()}
            assert not self.run(self.leases.resume(lease, "other weights")).snapshots

    # ---- what always holds --------------------------------------------------------------------------------

    @invariant()
    def counters_add_up(self) -> None:
        counts = self.run(queue_counts(self.queue))
        states = Counter(job.state for job in self.model.jobs.values())
        assert {state: n for state, n in counts.states.items() if n} == dict(states)
        assert (
            sum(counts.submitted.values()) == len(self.model.jobs) == states["queued"] + counts.running + counts.ended
        )
        assert sum(counts.waiting.values()) == states["queued"]
        assert counts.waiting_work.get(MODEL, 0) == sum(j.work for j in self.model.jobs.values() if j.state == "queued")
        assert counts.leases == counts.running
        assert counts.kept == counts.ended
        assert (counts.fenced, counts.redeliveries, counts.dead_letter_depth) == (
            self.model.fenced,
            self.model.redeliveries,
            self.model.dead,
        )

    @invariant()
    def positions_are_in_order(self) -> None:
        """The next job has position 0, and no position exceeds the number of waiting jobs."""
        first = self.model.expected_order()
        if first:
            place = self.run(self.queue.place(self.run(self.queue.get(first.name))))
            assert place.position == 0
            waiting = [job for job in self.model.jobs.values() if job.state == "queued"]
            last = self.run(self.queue.place(self.run(self.queue.get(waiting[-1].name))))
            assert 0 <= last.position < len(waiting)

    def teardown(self) -> None:
        """One healthy worker finishes all remaining jobs; nothing stays behind."""
        try:
            for job in self.model.jobs.values():
                if job.state in ("starting", "processing"):
                    self.run(lapse(self.queue, job.name))
            while left := self.run(self.leases.reclaim("last", MODEL, [], count=100)):
                for lease in left:
                    assert self.run(self.leases.finish(lease, JobState.SUCCEEDED))
            while lease := self.run(self.leases.take("last", MODEL)):
                assert self.run(self.leases.finish(lease, JobState.SUCCEEDED))
            records = [self.run(self.queue.get(name)) for name in self.model.jobs]
            assert all(record.state.terminal for record in records)
            assert self.run(empty(self.queue))
        finally:
            self.run(self._forget())
            self.loop.close()

    async def _forget(self) -> None:
        if keys := [key async for key in self.redis.scan_iter(f"{self.queue.keys.root}:*", count=1000)]:
            await self.redis.delete(*keys)
        await self.redis.aclose()


def test_the_queue_behaves_as_its_model(valkey: EmbeddedValkey) -> None:
    """No job is lost, duplicated, stuck, misplaced or miscounted in any order of events."""
    machine = type("Machine", (QueueMachine,), {"valkey": valkey})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40))
