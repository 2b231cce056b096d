"""The rows of an engine between admission and release, and what each step produced; plain Python on one thread."""

import logging
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import count

from server.errors import EngineBroken
from server.worker.engine.protocol import Engine

log = logging.getLogger(__name__)
#: A row is saved at most this often: with fast steps the writes would cost more than the steps that they save.
SNAPSHOT_S = 0.2
#: The worker learns this long before a row becomes free, and has its successor ready.
NOTICE_S = 0.003
MOST_NOTICE_STEPS = 8
STEPS_KEPT = 4096  # measurements of steps that the worker has not read; it reads them 50 times a second


@dataclass(slots=True)
class RowState:
    """One image on a row."""

    slot: int  #: the engine's own number of the row, which is used again
    done: int  #: AR steps
    total: int
    preview_steps: Collection[int]
    channels: int = 3  #: bytes per pixel
    batch_peak: int = 0  #: most rows that shared one of its steps
    saved_at: float = 0.0

    @property
    def left(self) -> int:
        return self.total - self.done


@dataclass(slots=True)
class StepNews:
    """What one step produced, by row. Finished rows are released already."""

    images: dict[int, tuple[RowState, bytes]] = field(default_factory=dict)  #: pixels of finished rows
    unreadable: dict[int, Exception] = field(default_factory=dict)  #: finished rows without readable pixels
    previews: dict[int, tuple[int, bytes]] = field(default_factory=dict)  #: (AR steps, pixels) of rows that want one
    snapshots: dict[int, bytes] = field(default_factory=dict)  #: states of rows that are due for one
    ending: bool = False  #: some rows are about to become free
    failed: Exception | None = None  #: the step itself failed; none follows until `failed_rows` are released
    failed_rows: frozenset[int] = frozenset()


class RowTable:
    """All rows of one engine. The engine's thread changes it; the event loop reads single rows."""

    def __init__(self, snapshot_steps: int) -> None:
        self.rows: dict[int, RowState] = {}
        self.steps: deque[tuple[float, int]] = deque(maxlen=STEPS_KEPT)  #: (seconds, rows) of each step
        self.notice_steps = 1
        self._snapshot_steps = snapshot_steps
        self._numbers = count(1)
        self._by_slot: dict[int, int] = {}
        self._suspects: frozenset[int] = frozenset()  #: rows of a failed step that are not released yet
        self.step_s = 0.0  #: seconds of a step, averaged

    @property
    def can_step(self) -> bool:
        return bool(self.rows) and not self._suspects

    def add(self, state: RowState) -> int:
        row = next(self._numbers)
        state.saved_at = time.monotonic()
        self.rows[row] = state
        self._by_slot[state.slot] = row
        return row

    def release(self, engine: Engine, rows: Iterable[int]) -> None:
        """Free the rows; those that are free already are skipped."""
        for row in rows:
            if (state := self.rows.pop(row, None)) is not None:
                self._suspects -= {row}
                engine.release(state.slot)

    def snapshot(self, engine: Engine, rows: Iterable[int]) -> dict[int, bytes]:
        """Snapshots of those rows that still run and have made at least one step."""
        states = ((row, self.rows.get(row)) for row in rows)
        return {row: engine.snapshot(state.slot) for row, state in states if state is not None and state.done}

    def pause(self, engine: Engine, row: int) -> bytes | None:
        """Free a running row and return its snapshot, which is empty before the first step. None: it does not run."""
        state = self.rows.get(row)
        if state is None or row in self._suspects:
            return None
        snapshot = engine.snapshot(state.slot) if state.done else b""
        try:
            self.release(engine, [row])
        except Exception as error:
            raise EngineBroken(f"The engine failed to release a row: {error!r}") from error
        return snapshot

    def step(self, engine: Engine) -> StepNews | None:
        """Run one step for every row. None: there is nothing to tell."""
        began, size = time.monotonic(), len(self.rows)
        news = StepNews()
        try:
            finished = engine.step()
            now = time.monotonic()
            self._measure(now - began, size)
            for slot in finished:
                self._collect(engine, self._by_slot[slot], size, news)
            self._look_at_the_others(engine, size, now, news)
        except EngineBroken as error:
            log.error("%s", error)
            self._suspects = frozenset(self.rows)
            news.failed, news.failed_rows = error, self._suspects
            return news
        except Exception as error:
            log.exception("the engine failed in a step of %d rows", size)
            self._suspects = frozenset(self.rows)
            news.failed, news.failed_rows = error, self._suspects
            return news
        told = news.images or news.unreadable or news.previews or news.snapshots or news.ending
        return news if told else None

    def _measure(self, seconds: float, size: int) -> None:
        self.steps.append((seconds, size))
        self.step_s += 0.1 * (seconds - self.step_s)
        self.notice_steps = min(MOST_NOTICE_STEPS, 1 + int(NOTICE_S / max(self.step_s, 1e-6)))

    def _collect(self, engine: Engine, row: int, size: int, news: StepNews) -> None:
        """Take a finished image off its row."""
        state = self.rows[row]
        state.done = state.total
        state.batch_peak = max(state.batch_peak, size)
        try:
            news.images[row] = (state, read_pixels(engine, state.slot, state.channels))
        except Exception as error:  # one broken image must not fail its neighbours
            log.exception("a row finished, but its pixels cannot be read")
            news.unreadable[row] = error
        engine.release(state.slot)
        del self.rows[row]

    def _look_at_the_others(self, engine: Engine, size: int, now: float, news: StepNews) -> None:
        every = self._snapshot_steps
        for row, state in self.rows.items():
            state.done, _ = engine.progress(state.slot)
            if size > state.batch_peak:
                state.batch_peak = size
            if state.total - state.done == self.notice_steps:
                news.ending = True
            if state.done in state.preview_steps:
                self._preview(engine, row, state, news)
            if every and state.done % every == 0 and now - state.saved_at >= SNAPSHOT_S:
                self._save(engine, row, state, now, news)

    def _preview(self, engine: Engine, row: int, state: RowState, news: StepNews) -> None:
        try:
            news.previews[row] = (state.done, read_pixels(engine, state.slot, state.channels))
        except Exception:  # a failed preview must not cost the image
            log.exception("no preview of a row")

    def _save(self, engine: Engine, row: int, state: RowState, now: float, news: StepNews) -> None:
        state.saved_at = now
        try:
            news.snapshots[row] = engine.snapshot(state.slot)
        except Exception:  # the step itself succeeded
            log.exception("no snapshot of a row")


def read_pixels(engine: Engine, slot: int, channels: int = 3) -> bytes:
    """Return the image on a row so far. Raises ValueError if it has the wrong number of bytes."""
    pixels, (width, height) = engine.image(slot), engine.image_size
    if len(pixels) != width * height * channels:
        raise ValueError(f"the image has {len(pixels)} bytes, not {width} x {height} x {channels}")
    return pixels
