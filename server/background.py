"""Background tasks: supervised, and canceled reliably, although redis-py can swallow a cancellation.

redis-py sends each command under `asyncio.wait_for`, which before Python 3.12 loses a cancellation that arrives just
as the send has finished (bpo-37658). A task that does nothing but talk to Redis ignored two cancellations of three.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

log = logging.getLogger(__name__)
RETRY_S = 0.1
T = TypeVar("T")
Task = Callable[[], Coroutine[Any, Any, None]]
#: Pauses before a crashed task is started again: the n-th crash in succession takes the n-th, or the last.
BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
STABLE_S = 15.0  # a task that ran this long starts over with the shortest pause; longer than every pause
KEEPS_CRASHING = 3  # crashes in succession after which a task counts as failing


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks repeatedly until all have ended. The caller can still read their exceptions from them."""
    alive = {task for task in tasks if not task.done()}
    while alive:
        for task in alive:
            task.cancel()
        _, alive = await asyncio.wait(alive, timeout=RETRY_S)


class SingleFlight(Generic[T]):
    """Runs some work once for all that need it at the same time; each gets its result, or its exception."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """Join the work under way, or start it. Canceling one caller does not stop it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(_retrieve)
        return await asyncio.shield(self._task)

    async def settle(self) -> None:
        """Wait until the work under way, if any, has ended."""
        if self._task is not None:
            await asyncio.wait((self._task,))


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Note an exception for which every caller may have stopped waiting; asyncio would log it."""
    if not task.cancelled():
        task.exception()


class RepeatedFailure:
    """Logs a failure that is met again and again: once, until its text changes or it is over."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._text = log, ""

    def warn(self, text: str) -> None:
        if text != self._text:
            self._log.warning("%s", text)
        self._text = text

    def over(self) -> None:
        self._text = ""


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set or time is up, and clear it. asyncio.wait_for would make a task for each wait."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    await event.wait()
    timer.cancel()
    event.clear()


@dataclass(frozen=True, slots=True)
class Crash:
    """The last crash of a task."""

    task: str
    error: str  #: name of the exception's type; its text may hold a secret and is only in the log
    in_succession: int

    @property
    def keeps_happening(self) -> bool:
        return self.in_succession >= KEEPS_CRASHING

    def __str__(self) -> str:
        return f"the background task {self.task!r} has crashed {self.in_succession} times in succession ({self.error})"


class Supervisor:
    """Runs every endless background task of a process; one that crashes is logged, reported and started again."""

    def __init__(self, report: Callable[[Crash], Awaitable[None]]) -> None:
        """`report` counts and publishes each crash; an exception of its own is logged."""
        self._report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._crashes: dict[str, Crash] = {}
        self._began: dict[str, float] = {}

    @property
    def failing(self) -> list[Crash]:
        """Tasks that keep crashing, and have not run for STABLE_S since."""
        now = time.monotonic()
        return [c for name, c in self._crashes.items() if c.keeps_happening and now - self._began[name] < STABLE_S]

    @asynccontextmanager
    async def running(self, tasks: Mapping[str, Task]) -> AsyncIterator[None]:
        """Run the tasks, by name, in the background of the block, and cancel them at its end."""
        ending = asyncio.Event()
        loops = [asyncio.create_task(self._supervise(name, start, ending)) for name, start in tasks.items()]
        try:
            yield
        finally:
            ending.set()
            await cancel_and_wait(*loops, *(self._tasks[name] for name in tasks if name in self._tasks))

    async def _supervise(self, name: str, start: Task, ending: asyncio.Event) -> None:
        while not ending.is_set():
            self._began[name] = began = time.monotonic()
            # A task of its own: a library that cancels it, or a cancellation that it swallows, is not ours.
            task = self._tasks[name] = asyncio.create_task(start(), name=name)
            await asyncio.wait({task})
            if ending.is_set():
                return
            last = self._crashes.get(name)
            succession = 1 if last is None or time.monotonic() - began > STABLE_S else last.in_succession + 1
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            crash = self._crashes[name] = Crash(name, type(error).__name__ if error else "it returned", succession)
            pause = BACKOFF_S[min(succession, len(BACKOFF_S)) - 1]
            log.error("%s; starting it again in %g s", crash, pause, exc_info=error)
            try:
                await self._report(crash)
            except Exception:
                log.exception("cannot report the crash of %r", name)
            await asyncio.sleep(pause)


def stop_signals() -> list[signal.Signals]:
    """SIGTERM and SIGINT, and SIGHUP, with which a terminal says goodbye, unless `nohup` has it ignored."""
    found = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def exit_now(status: int) -> NoReturn:
    """End the process: what is logged gets written, but no thread can hold up or break the ending."""
    logging.shutdown()
    os._exit(status)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Create uvloop's event loop, with which a worker takes a fifth less processor time per image, or asyncio's where
    there is no uvloop."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
