"""Which image sits in which row: first come first served, suspects alone."""

from harness import job_input

from server.batching import Batch, Work
from server.jobs import Lease


def hold(batch: Batch, job_id: str, n: int = 1, suspect: bool = False) -> Work:
    return batch.add(Lease(job_id, f"{job_id}-0", 1, 1, job_input(n=n), 0.0, 0.0, suspect), 0.0)


def seat_next(batch: Batch) -> list[str]:
    """Admit what the batch proposes, on the lowest free rows; the job ids."""
    names = []
    for work, index in batch.next_images():
        row = next(r for r in range(batch.max_rows) if r not in batch.rows)
        batch.seat(work, index, row)
        names.append(work.lease.job_id)
    return names


def test_rows_are_filled_in_order_and_never_overbooked() -> None:
    """Taking more jobs than there are rows would hoard them from idle workers."""
    batch = Batch(3)
    hold(batch, "a", n=2)
    hold(batch, "b", n=2)
    assert batch.room() == -1
    assert seat_next(batch) == ["a", "a", "b"]
    assert (batch.free_rows, batch.next_images()) == (0, [])


def test_a_freed_row_is_taken_at_the_next_step() -> None:
    """Continuous batching: a waiting image need not wait for the whole batch."""
    batch = Batch(2)
    a, b = hold(batch, "a"), hold(batch, "b", n=2)
    seat_next(batch)
    batch.unseat(a, 0, again=False)
    batch.remove(a)
    assert seat_next(batch) == ["b"]
    assert sorted(b.rows.values()) == [0, 1]


def test_a_suspect_runs_alone() -> None:
    """It waits until its neighbours are done, nobody joins it, and then the others go on."""
    batch = Batch(4)
    a = hold(batch, "a")
    seat_next(batch)
    poison = hold(batch, "poison", n=2, suspect=True)
    hold(batch, "later")
    assert batch.room() == 0
    assert seat_next(batch) == []
    batch.unseat(a, 0, again=False)
    batch.remove(a)
    assert seat_next(batch) == ["poison", "poison"]
    assert seat_next(batch) == []
    for row in list(poison.rows):
        batch.unseat(poison, row, again=False)
    assert seat_next(batch) == ["later"]


def test_an_image_that_lost_its_row_starts_over() -> None:
    """After an engine failure its progress is gone; reporting the old step would be a lie."""
    batch = Batch(1)
    work = hold(batch, "a")
    seat_next(batch)
    work.steps_done[0] = 3
    batch.unseat(work, 0, again=True)
    assert (list(work.waiting), work.steps_done[0], work.rows) == ([0], 0, {})


def test_removal_is_by_identity() -> None:
    """After a lost lease the same job may be held twice for a moment; only the stale one may go."""
    batch = Batch(1)
    stale = hold(batch, "a")
    batch.works["a#1"] = batch.works.pop("a")
    fresh = hold(batch, "a")
    batch.remove(stale)
    assert list(batch.works.values()) == [fresh]
