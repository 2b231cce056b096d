"""Assignment of images to rows: classes, callers in turn, suspects alone, no idle row."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.jobs import PRIORITIES, Lease
from server.worker.scheduling.held_job import HeldJob
from server.worker.scheduling.scheduler import DeficitRoundRobin, Scheduler
from tests.server.harness import job_input

AGEING_S = 60.0


def hold(
    scheduler: Scheduler, job_id: str, n: int = 1, *, suspect: bool = False, at: float = 0.0, **changes: object
) -> HeldJob:
    lease = Lease(job_id, 1, 1, job_input(n=n, **changes), at, at, suspect)
    return scheduler.add(lease, at)


def admit_next(scheduler: Scheduler, now: float = 0.0) -> list[str]:
    """Admit what the scheduler proposes to the lowest free rows; returns the job ids."""
    names = []
    for job, index in scheduler.next_images(now):
        row = next(r for r in range(scheduler.max_rows) if r not in scheduler.rows)
        scheduler.start_admission(job, index)
        scheduler.assign_row(job, index, row)
        names.append(job.lease.job_id)
    return names


def finish(scheduler: Scheduler, job: HeldJob) -> None:
    for row in list(job.rows):
        scheduler.free_row(job, row, retry=False)
    scheduler.remove(job)


def test_rows_are_filled_in_order_and_never_overbooked() -> None:
    """Taking more jobs than there are rows would hoard them from idle workers."""
    scheduler = Scheduler(3, AGEING_S)
    hold(scheduler, "a", n=2)
    hold(scheduler, "b", n=2)
    assert scheduler.room() == -1
    assert admit_next(scheduler) == ["a", "a", "b"]
    assert (scheduler.idle_rows, scheduler.next_images(0.0)) == (0, [])


def test_a_freed_row_is_taken_at_the_next_step() -> None:
    """Continuous batching: a waiting image need not wait for the whole batch."""
    scheduler = Scheduler(2, AGEING_S)
    a, b = hold(scheduler, "a"), hold(scheduler, "b", n=2)
    admit_next(scheduler)
    finish(scheduler, a)
    assert admit_next(scheduler) == ["b"]
    assert sorted(b.rows.values()) == [0, 1]


def test_classes_go_first_and_waiting_jobs_go_up() -> None:
    """High before normal before low; but a low job that has waited two ageing times competes with the high ones."""
    scheduler = Scheduler(1, AGEING_S)
    for priority in ("low", "normal", "high"):
        hold(scheduler, priority, priority=priority)
    assert [job.lease.job_id for job, _ in scheduler.next_images(0.0)] == ["high"]
    scheduler = Scheduler(1, AGEING_S)
    hold(scheduler, "old", priority="low", at=0.0)
    hold(scheduler, "new", priority="high", at=2 * AGEING_S)
    assert scheduler.next_images(2 * AGEING_S - 1)[0][0].lease.job_id == "new"
    assert scheduler.next_images(2 * AGEING_S)[0][0].lease.job_id == "old"


def test_a_clock_that_was_set_back_between_acceptance_and_lease() -> None:
    """A job of class low had waited for less than no time, and its class was an IndexError that ended the worker."""
    scheduler = Scheduler(1, AGEING_S)
    low = scheduler.add(Lease("low", 1, 1, job_input(priority="low"), 2 * AGEING_S, 0.0), 0.0)
    assert (scheduler.priority(low, 0.0), low.lease.queue_s) == ("low", 0.0)
    assert admit_next(scheduler) == ["low"]


def test_callers_take_turns_within_a_class() -> None:
    """A caller with a job of many images must not keep other callers off the rows until all are generated."""
    scheduler = Scheduler(1, AGEING_S)
    big, small = hold(scheduler, "big", n=10, user="a"), hold(scheduler, "small", user="b")
    assert admit_next(scheduler) == ["big"]
    scheduler.free_row(big, 0, retry=False)
    assert admit_next(scheduler) == ["small"]
    finish(scheduler, small)
    assert admit_next(scheduler) == ["big"]


def test_a_worker_full_of_one_job_asks_for_one_more() -> None:
    """With ten images of one job on four rows nothing else used to be taken until the last one had a row."""
    scheduler = Scheduler(4, AGEING_S)
    hold(scheduler, "big", n=10, user="a")
    assert not scheduler.saturated()  # no image has a row yet
    admit_next(scheduler)
    assert scheduler.room() < 0 and scheduler.saturated()
    hold(scheduler, "small", user="b")
    assert not scheduler.saturated()


def test_a_suspect_runs_alone() -> None:
    """It waits until its neighbours are done, no other job joins it, and then the others continue."""
    scheduler = Scheduler(4, AGEING_S)
    a = hold(scheduler, "a")
    admit_next(scheduler)
    poison = hold(scheduler, "poison", n=2, suspect=True)
    hold(scheduler, "later")
    assert scheduler.room() == 0 and not scheduler.saturated()
    assert admit_next(scheduler) == []
    finish(scheduler, a)
    assert admit_next(scheduler) == ["poison", "poison"]
    assert admit_next(scheduler) == []
    finish(scheduler, poison)
    assert admit_next(scheduler) == ["later"]


def test_a_limited_job_runs_alone_with_fewer_images() -> None:
    """Its images were too many together; with the same number it would fail again."""
    scheduler = Scheduler(8, AGEING_S)
    big = hold(scheduler, "big", n=5)
    hold(scheduler, "other")
    scheduler.limit_rows(big, 2)
    assert admit_next(scheduler) == ["big", "big"]
    assert admit_next(scheduler) == []
    scheduler.free_row(big, next(iter(big.rows)), retry=False)
    assert admit_next(scheduler) == ["big"]


@given(count=st.integers(2, 32), guilty=st.data())
def test_bisection_finds_the_guilty_one_in_few_calls(count: int, guilty: st.DataObject) -> None:
    """Running each alone, one after the other, used to take as many image times as there were jobs in the batch."""
    scheduler = Scheduler(32, AGEING_S)
    jobs = [hold(scheduler, f"job{i}") for i in range(count)]
    poison = guilty.draw(st.sampled_from(jobs))
    failures, alone = 0, None
    while alone is None:
        admit_next(scheduler)
        batch = scheduler.active
        if poison not in batch:
            for job in batch:
                finish(scheduler, job)
            continue
        failures += 1
        for job in batch:
            scheduler.free_row(job, next(iter(job.rows)), retry=True)
        if len(batch) > 1:
            scheduler.split(batch)
        else:
            [alone] = batch
    assert alone is poison
    assert failures <= (count - 1).bit_length() + 1


def test_an_image_that_lost_its_row_starts_over() -> None:
    """After an engine failure its progress is gone; the reported step must say so."""
    scheduler = Scheduler(1, AGEING_S)
    job = hold(scheduler, "a")
    admit_next(scheduler)
    job.steps_done[0] = 3
    scheduler.free_row(job, 0, retry=True)
    assert (list(job.waiting), job.steps_done[0], job.rows) == ([0], 0, {})


def test_removal_is_by_identity() -> None:
    """After a lost lease the same job may be held twice for a moment; only the stale one may go."""
    scheduler = Scheduler(1, AGEING_S)
    stale = hold(scheduler, "a")
    fresh = hold(scheduler, "a")
    assert stale.lost
    scheduler.remove(stale)
    assert list(scheduler.jobs.values()) == [fresh]


COSTS = st.lists(st.integers(1, 64), min_size=1, max_size=20)


@given(lines=st.dictionaries(st.sampled_from("abcdef"), COSTS, min_size=1))
def test_deficit_round_robin_is_fair(lines: dict[str, list[int]]) -> None:
    """While two callers both wait, the work that each was given differs by less than three times the largest image."""
    turns = DeficitRoundRobin()
    largest = max(max(line) for line in lines.values())
    waiting = {caller: list(line) for caller, line in lines.items()}
    given_to: Counter[str] = Counter()
    while waiting:
        caller = turns.next({c: line[0] for c, line in waiting.items()})
        given_to[caller] += waiting[caller].pop(0)
        if not waiting[caller]:
            del waiting[caller]
        work = [given_to[c] for c in waiting]
        assert not work or max(work) - min(work) <= 3 * largest
    assert given_to == {caller: sum(line) for caller, line in lines.items()}


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from(PRIORITIES), st.sampled_from("abc"), st.integers(1, 10), st.integers(1, 30), st.booleans()
    ),
    max_size=30,
)


@given(max_rows=st.integers(1, 8), arrivals=ARRIVALS)
def test_every_image_gets_exactly_one_row_and_no_row_idles(
    max_rows: int, arrivals: list[tuple[str, str, int, int, bool]]
) -> None:
    """Rows are never overbooked, none is free while an image may enter it, and every image is generated."""
    scheduler = Scheduler(max_rows, AGEING_S)
    drawn: Counter[str] = Counter()
    left: dict[int, int] = {}
    now, arriving = 0.0, list(arrivals)
    while arriving or scheduler.busy:
        now += 1.0
        if arriving and scheduler.room() > 0:
            priority, user, n, steps, suspect = arriving.pop()
            name = f"job{len(arriving)}"
            hold(scheduler, name, n, suspect=suspect, at=now, priority=priority, user=user, num_inference_steps=steps)
        for job, index in scheduler.next_images(now):
            row = next(r for r in range(max_rows) if r not in scheduler.rows)
            scheduler.start_admission(job, index)
            scheduler.assign_row(job, index, row)
            left[row] = job.lease.input.sampling.num_inference_steps
        assert len(scheduler.rows) <= max_rows
        assert not scheduler.idle_rows or not scheduler.next_images(now)
        assert not scheduler.busy or scheduler.rows  # no image waits while every row is free
        if any(job.cohort is not None for job in scheduler.active):
            assert len({job.cohort for job in scheduler.active}) == 1
        for row, job in list(scheduler.rows.items()):
            left[row] -= 1
            if not left[row]:
                scheduler.free_row(job, row, retry=False)
                drawn[job.lease.job_id] += 1
                if drawn[job.lease.job_id] == job.lease.input.n:
                    scheduler.remove(job)
    assert sum(drawn.values()) == sum(n for _, _, n, _, _ in arrivals)
