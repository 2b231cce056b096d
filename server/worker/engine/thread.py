"""The engine on a thread of its own, which steps on without waiting for the event loop.

Between two steps the thread runs what the event loop has asked for: admissions, releases, snapshots. Whatever a step
produced is left in a queue for the event loop, and only then is the loop woken: a step that produces nothing costs no
hand-over. A *row* here is a number that is never used twice, so that late news of a released row cannot be mistaken
for its successor's.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from server.errors import EngineBroken
from server.model_info import ModelInfo
from server.worker.engine.protocol import Engine, RowRequest
from server.worker.engine.row_states import RowState, RowTable, StepNews

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Call(Generic[T]):
    """A function for the engine's thread, and the future that waits for it."""

    work: Callable[[], T]
    answer: "asyncio.Future[T]"
    rows: int = 0  #: rows that must be free first
    then: Callable[[T], None] | None = None  #: called on the event loop with the answer, before any later news
    timed: bool = True  #: it should take about a step; loading does not count: weights may come over a network


@dataclass(frozen=True, slots=True)
class Admission:
    """A request for a row."""

    request: RowRequest
    preview_steps: Collection[int] = ()  #: AR steps after which a preview is due


@dataclass(frozen=True, slots=True)
class AdmittedRow:
    """The row that a request was given."""

    row: int
    done: int  #: AR steps that its snapshot had made
    prompt_tokens: int


class EngineThread:
    """Runs every call to the engine on one thread, so that engines need no locks."""

    def __init__(self, snapshot_steps: int) -> None:
        self.hung = False  #: a call never returned; the interpreter would wait for it at exit
        self.kernels = self.device = ""  #: the engine's, once it is loaded
        self.news: deque[StepNews] = deque()  #: what steps produced, oldest first; the event loop takes it from here
        self.on_news: Callable[[], None] = lambda: None  #: called on the event loop when there is news
        self.table = RowTable(snapshot_steps)
        self._engine: Engine | None = None
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._waiting: deque[_Call[Any]] = deque()  #: admissions that wait for rows to become free
        self._began: float | None = None  #: start of the current call or step
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine")

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise EngineBroken("The engine was used before it was loaded.")
        return self._engine

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    # --- for the event loop ---------------------------------------------------------------------------

    async def load(
        self, factory: Callable[[], Engine], report: Callable[[int, int], None] = lambda done, total: None
    ) -> ModelInfo:
        """Load the engine and prepare its shapes, which takes a GPU up to minutes.

        `report` is called with (shapes done, shapes in total), on the engine's thread.
        """
        self._engine = await self._call(factory, timed=False)
        await self._call(lambda: self.engine.warm_up(report), timed=False)
        self.kernels, self.device = self._engine.kernels, self._engine.device
        return ModelInfo.from_mapping(await self._call(self._engine.info, timed=False))

    async def run(self, work: Callable[[Engine], T]) -> T:
        """Run a function of the engine between two steps."""
        return await self._call(lambda: work(self.engine))

    async def admit(self, admissions: Sequence[Admission], admitted: Callable[[list[AdmittedRow]], None]) -> None:
        """Admit all or none as soon as enough rows are free, and call `admitted` before there is news of these rows.

        Raises what the engine raises.
        """

        def admit_all() -> list[AdmittedRow]:
            slots = self.engine.admit([admission.request for admission in admissions])
            return [self._enter(*each) for each in zip(slots, admissions, strict=True)]

        await self._call(admit_all, rows=len(admissions), then=admitted)

    async def restore(self, admission: Admission, state: bytes, admitted: Callable[[list[AdmittedRow]], None]) -> None:
        """Like `admit`, for one request that resumes from a snapshot."""

        def restore_one() -> list[AdmittedRow]:
            return [self._enter(self.engine.restore(admission.request, state), admission)]

        await self._call(restore_one, rows=1, then=admitted)

    async def snapshot(self, rows: Iterable[int]) -> dict[int, bytes]:
        """Snapshots of those rows that have made at least one step."""
        wanted = list(rows)
        return await self._call(lambda: self.table.snapshot(self.engine, wanted))

    async def pause(self, row: int, paused: Callable[[bytes | None], None]) -> None:
        """Free a row and call `paused` with its snapshot, empty before the first step, or None if it does not run.

        Raises what the engine's snapshot raises; the row then runs on.
        """
        await self._call(lambda: self.table.pause(self.engine, row), then=paused)

    async def release(self, rows: Iterable[int]) -> None:
        """Free the rows that have not finished meanwhile. Raises EngineBroken if the engine fails even at that."""
        doomed = list(rows)
        try:
            await self._call(lambda: self.table.release(self.engine, doomed))
        except Exception as error:
            raise EngineBroken(f"The engine failed to release its rows: {error!r}") from error

    @property
    def busy_s(self) -> float:
        """How long the current call or step has taken."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def restart_clock(self) -> None:
        """Measure `busy_s` from now: the current call has finished one of its steps."""
        self._began = time.monotonic()

    def close(self) -> None:
        """End the thread after its current call; calls that wait are canceled."""
        self._closed = True
        self._calls.put(None)

    async def _call(
        self,
        work: Callable[[], T],
        *,
        rows: int = 0,
        then: Callable[[T], None] | None = None,
        timed: bool = True,
    ) -> T:
        if self._closed:
            raise EngineBroken("The engine was used after its thread had ended.")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread.start()
        call: _Call[T] = _Call(work, self._loop.create_future(), rows, then, timed)
        self._calls.put(call)
        return await call.answer

    # --- on the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            while self._waiting and self._waiting[0].rows <= self.engine.max_rows - len(self.table.rows):
                self._answer(self._waiting.popleft())
            idle = not self.table.can_step
            self._began = None if idle else time.monotonic()
            call = self._calls.get() if idle or not self._calls.empty() else None
            if call is not None and call.rows:
                self._waiting.append(call)
            elif call is not None:
                self._answer(call)
            elif not self._closed:
                self._step()
        while self._waiting or not self._calls.empty():
            call = self._waiting.popleft() if self._waiting else self._calls.get()
            if call is not None:
                self._tell(call.answer.cancel)

    def _answer(self, call: _Call[Any]) -> None:
        self._began = time.monotonic() if call.timed else None
        try:
            answer = call.work()
        except Exception as error:
            self._tell(_set_exception, call.answer, error)
        else:
            self._tell(_set_result, call, answer)

    def _enter(self, slot: int, admission: Admission) -> AdmittedRow:
        """Note the row that the engine gave to a request."""
        request = admission.request
        channels = 4 if request.transparent else 3
        state = RowState(slot, *self.engine.progress(slot), admission.preview_steps, channels)
        return AdmittedRow(self.table.add(state), state.done, self.engine.prompt_tokens(request.prompt))

    def _step(self) -> None:
        self._began = time.monotonic()
        news = self.table.step(self.engine)
        if news is not None:
            self._tell(self._deliver, news)

    def _deliver(self, news: StepNews) -> None:
        self.news.append(news)
        self.on_news()

    def _tell(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on the event loop, unless the loop has ended."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(function, *args)
            except RuntimeError:  # it was closed meanwhile; nobody waits for the answer
                log.debug("the event loop ended before the engine's answer")


def _set_result(call: _Call[T], value: T) -> None:
    if call.then is not None:
        call.then(value)
    if not call.answer.done():
        call.answer.set_result(value)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
