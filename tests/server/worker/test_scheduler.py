"""Which image sits in which row: classes, callers in turn, suspects by themselves, no row idle."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from server.jobs import PRIORITIES, Lease
from server.worker.held_job import HeldJob
from server.worker.scheduler import DeficitRoundRobin, Scheduler
from tests.server.harness import job_input

AGEING_S = 60.0


def hold(
    held: Scheduler, job_id: str, n: int = 1, *, suspect: bool = False, at: float = 0.0, **changes: object
) -> HeldJob:
    lease = Lease(job_id, 1, 1, job_input(n=n, **changes), at, at, suspect)
    return held.add(lease, at)


def seat_next(held: Scheduler, now: float = 0.0) -> list[str]:
    """Admit what the scheduler proposes, on the lowest free rows; the job ids."""
    names = []
    for work, index in held.next_images(now):
        row = next(r for r in range(held.max_rows) if r not in held.rows)
        held.seat(work, index, row)
        names.append(work.lease.job_id)
    return names


def finish(held: Scheduler, work: HeldJob) -> None:
    for row in list(work.rows):
        held.unseat(work, row, again=False)
    held.remove(work)


def test_rows_are_filled_in_order_and_never_overbooked() -> None:
    """Taking more jobs than there are rows would hoard them from idle workers."""
    held = Scheduler(3, AGEING_S)
    hold(held, "a", n=2)
    hold(held, "b", n=2)
    assert held.room() == -1
    assert seat_next(held) == ["a", "a", "b"]
    assert (held.free_rows, held.next_images(0.0)) == (0, [])


def test_a_freed_row_is_taken_at_the_next_step() -> None:
    """Continuous batching: a waiting image need not wait for the whole batch."""
    held = Scheduler(2, AGEING_S)
    a, b = hold(held, "a"), hold(held, "b", n=2)
    seat_next(held)
    finish(held, a)
    assert seat_next(held) == ["b"]
    assert sorted(b.rows.values()) == [0, 1]


def test_classes_go_first_and_who_waits_goes_up() -> None:
    """High before normal before low; but a low job that waited two ageing times stands with the high ones."""
    held = Scheduler(1, AGEING_S)
    for priority in ("low", "normal", "high"):
        hold(held, priority, priority=priority)
    assert [work.lease.job_id for work, _ in held.next_images(0.0)] == ["high"]
    held = Scheduler(1, AGEING_S)
    hold(held, "old", priority="low", at=0.0)
    hold(held, "new", priority="high", at=2 * AGEING_S)
    assert held.next_images(2 * AGEING_S - 1)[0][0].lease.job_id == "new"
    assert held.next_images(2 * AGEING_S)[0][0].lease.job_id == "old"


def test_callers_take_turns_within_a_class() -> None:
    """A caller with a job of many images must not keep everybody else off the rows until all are drawn."""
    held = Scheduler(1, AGEING_S)
    big, small = hold(held, "big", n=10, user="a"), hold(held, "small", user="b")
    assert seat_next(held) == ["big"]
    held.unseat(big, 0, again=False)
    assert seat_next(held) == ["small"]
    finish(held, small)
    assert seat_next(held) == ["big"]


def test_a_worker_full_of_one_job_asks_for_one_more() -> None:
    """With ten images of one job on four rows nothing else was taken until the last one had a row."""
    held = Scheduler(4, AGEING_S)
    hold(held, "big", n=10, user="a")
    assert not held.saturated()  # nothing sits yet
    seat_next(held)
    assert held.room() < 0 and held.saturated()
    hold(held, "small", user="b")
    assert not held.saturated()


def test_a_suspect_runs_alone() -> None:
    """It waits until its neighbours are done, nobody joins it, and then the others go on."""
    held = Scheduler(4, AGEING_S)
    a = hold(held, "a")
    seat_next(held)
    poison = hold(held, "poison", n=2, suspect=True)
    hold(held, "later")
    assert held.room() == 0 and not held.saturated()
    assert seat_next(held) == []
    finish(held, a)
    assert seat_next(held) == ["poison", "poison"]
    assert seat_next(held) == []
    finish(held, poison)
    assert seat_next(held) == ["later"]


def test_a_thinned_job_sits_with_fewer_images_and_alone() -> None:
    """Its images were too many together; with the same number it would fail again."""
    held = Scheduler(8, AGEING_S)
    big = hold(held, "big", n=5)
    hold(held, "other")
    held.thin(big, 2)
    assert seat_next(held) == ["big", "big"]
    assert seat_next(held) == []
    held.unseat(big, next(iter(big.rows)), again=False)
    assert seat_next(held) == ["big"]


@given(jobs=st.integers(2, 32), guilty=st.data())
def test_bisection_finds_the_guilty_one_in_few_calls(jobs: int, guilty: st.DataObject) -> None:
    """Each alone, one after the other, cost as many picture times as there were jobs in the batch."""
    held = Scheduler(32, AGEING_S)
    works = [hold(held, f"job{i}") for i in range(jobs)]
    poison = guilty.draw(st.sampled_from(works))
    failures, alone = 0, None
    while alone is None:
        seat_next(held)
        batch = held.active
        if poison not in batch:
            for work in batch:
                finish(held, work)
            continue
        failures += 1
        for work in batch:
            held.unseat(work, next(iter(work.rows)), again=True)
        if len(batch) > 1:
            held.split(batch)
        else:
            [alone] = batch
    assert alone is poison
    assert failures <= (jobs - 1).bit_length() + 1


def test_an_image_that_lost_its_row_starts_over() -> None:
    """After an engine failure its progress is gone; reporting the old step would be a lie."""
    held = Scheduler(1, AGEING_S)
    work = hold(held, "a")
    seat_next(held)
    work.steps_done[0] = 3
    held.unseat(work, 0, again=True)
    assert (list(work.waiting), work.steps_done[0], work.rows) == ([0], 0, {})


def test_removal_is_by_identity() -> None:
    """After a lost lease the same job may be held twice for a moment; only the stale one may go."""
    held = Scheduler(1, AGEING_S)
    stale = hold(held, "a")
    fresh = hold(held, "a")
    assert stale.lost
    held.remove(stale)
    assert list(held.works.values()) == [fresh]


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
    """Whatever arrives: rows are never overbooked, none is free while an image may enter it, everything is drawn."""
    held = Scheduler(max_rows, AGEING_S)
    drawn: Counter[str] = Counter()
    left: dict[int, int] = {}
    now, arriving = 0.0, list(arrivals)
    while arriving or held.busy:
        now += 1.0
        if arriving and held.room() > 0:
            priority, user, n, steps, suspect = arriving.pop()
            name = f"job{len(arriving)}"
            hold(held, name, n, suspect=suspect, at=now, priority=priority, user=user, num_inference_steps=steps)
        for work, index in held.next_images(now):
            row = next(r for r in range(max_rows) if r not in held.rows)
            held.seat(work, index, row)
            left[row] = work.lease.input.sampling.num_inference_steps
        assert len(held.rows) <= max_rows
        assert not held.free_rows or not held.next_images(now)
        assert not held.busy or held.rows  # nothing waits for nothing
        if any(work.cohort is not None for work in held.active):
            assert len({work.cohort for work in held.active}) == 1
        for row, work in list(held.rows.items()):
            left[row] -= 1
            if not left[row]:
                held.unseat(work, row, again=False)
                drawn[work.lease.job_id] += 1
                if drawn[work.lease.job_id] == work.lease.input.n:
                    held.remove(work)
    assert sum(drawn.values()) == sum(n for _, _, n, _, _ in arrivals)
