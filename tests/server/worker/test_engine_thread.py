"""The engine's thread: it steps on by itself, and its news can never be taken for another row's."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from server.errors import EngineBroken
from server.sampling import Sampling
from server.worker.engine.fake import FakeEngine
from server.worker.engine.protocol import RowRequest
from server.worker.engine.row_states import StepNews
from server.worker.engine.thread import Admission, AdmittedRow, EngineThread
from tests.server.harness import until_async

pytestmark = pytest.mark.anyio
ROWS = 2


class GatedEngine(FakeEngine):
    """A fake engine whose steps wait until the test lets them run."""

    def __init__(self) -> None:
        super().__init__(ROWS, 0.0)
        self.gate = threading.Semaphore(0)
        self.steps = 0
        self.fiftieth = threading.Event()

    def step(self) -> list[int]:
        self.gate.acquire()
        self.steps += 1
        if self.steps == 50:
            self.fiftieth.set()
        return super().step()


@pytest.fixture
async def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
async def thread(engine: GatedEngine) -> AsyncIterator[EngineThread]:
    made = EngineThread(snapshot_steps=0)
    await made.load(lambda: engine)
    yield made
    made.close()
    engine.gate.release(1000)


def admission(steps: int, prompt: str = "an apple", preview_steps: Sequence[int] = ()) -> Admission:
    sampling = Sampling(steps, 4, 3.0, guidance_schedule="linear", temperature=1.0)
    return Admission(RowRequest(prompt, 1, sampling), preview_steps)


async def admit(thread: EngineThread, *admissions: Admission) -> list[int]:
    given: list[AdmittedRow] = []
    await thread.admit(admissions, given.extend)
    return [each.row for each in given]


async def _true(value: bool) -> bool:
    return value


async def next_news(thread: EngineThread) -> StepNews:
    async with asyncio.timeout(60):
        while not thread.news:
            told = asyncio.Event()
            thread.on_news = told.set
            if not thread.news:
                await told.wait()
    return thread.news.popleft()


async def test_steps_follow_each_other_without_the_event_loop(engine: GatedEngine, thread: EngineThread) -> None:
    """Every step used to wait for the event loop, which asked Redis for jobs in between: 0.8 ms a step."""
    [row] = await admit(thread, admission(50))
    engine.gate.release(50)
    assert engine.fiftieth.wait(timeout=60)  # which blocks the event loop
    news = await next_news(thread)
    while not news.images:
        news = await next_news(thread)
    state, pixels = news.images[row]
    assert (state.done, engine.steps) == (50, 50) and len(pixels) == 32 * 32 * 3


async def test_late_news_of_a_released_row_is_not_its_successors(engine: GatedEngine, thread: EngineThread) -> None:
    """The engine uses the same slot again, but the number that the worker knows it by is new."""
    [first] = await admit(thread, admission(1))
    engine.gate.release(1)
    [second] = await admit(thread, admission(1))
    assert second != first
    engine.gate.release(1)
    seen: list[int] = []
    while len(seen) < 2:
        seen += (await next_news(thread)).images
    assert seen == [first, second]


async def test_an_admission_waits_for_free_rows_and_is_told_before_its_news(
    engine: GatedEngine, thread: EngineThread
) -> None:
    rows = await admit(thread, admission(2), admission(2))
    waiting = asyncio.create_task(admit(thread, admission(1), admission(1)))
    engine.gate.release(1)
    await until_async(lambda: _true(thread.table.rows[rows[0]].done == 1))
    assert not waiting.done()
    engine.gate.release(2)
    given = await waiting
    await until_async(lambda: _true(any(row in news.images for news in thread.news for row in given)))
    assert engine.steps == 3


async def test_no_step_follows_a_failed_one_until_its_rows_are_released(
    engine: GatedEngine, thread: EngineThread
) -> None:
    rows = await admit(thread, admission(5), admission(5, "[raise]"))
    engine.gate.release(10)
    news = await next_news(thread)
    assert isinstance(news.failed, RuntimeError) and news.failed_rows == set(rows)
    await thread.run(lambda each: each.prompt_tokens("an apple"))  # the thread still answers
    assert engine.steps == 1
    await thread.release(rows)
    await thread.release(rows)  # a second time is no error
    await admit(thread, admission(3))
    await until_async(lambda: _true(engine.steps == 4))


async def test_what_waits_when_the_thread_ends_is_canceled(engine: GatedEngine) -> None:
    thread = EngineThread(snapshot_steps=0)
    await thread.load(lambda: engine)
    await admit(thread, admission(2), admission(2))
    waiting = asyncio.create_task(admit(thread, admission(1)))
    await asyncio.sleep(0)
    thread.close()
    engine.gate.release(10)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(EngineBroken):
        await thread.release([1])
