"""The engine on a thread of its own, so that the event loop renews leases while a step runs."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from server.errors import CanaryFailed, EngineBroken
from server.model_info import ModelInfo
from server.sampling import Sampling
from server.worker.engine.protocol import Engine, RowRequest

log = logging.getLogger(__name__)
T = TypeVar("T")
CANARY_PROMPT = "a red apple"


@dataclass(slots=True)
class StepOutcome:
    """What one step did, collected in one hop to the engine's thread and back."""

    images: dict[int, bytes] = field(default_factory=dict)  #: finished rows, released already
    failures: dict[int, Exception] = field(default_factory=dict)  #: finished rows whose pixels could not be read
    progress: dict[int, int] = field(default_factory=dict)  #: AR steps done of rows still running
    snapshots: dict[int, bytes] = field(default_factory=dict)  #: rows that have come far enough for one
    previews: dict[int, bytes] = field(default_factory=dict)  #: pixels of rows half done that somebody wants to see


class EngineThread:
    """Every call to the engine goes through one thread: engines need no locks."""

    def __init__(self, snapshot_steps: int) -> None:
        self._snapshot_steps = snapshot_steps
        self._began: float | None = None  #: the call under way, of those that should take about a step
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None
        self.kernels = self.device = ""  #: of the engine, once it is loaded

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise EngineBroken("The engine is used before it was loaded.")
        return self._engine

    async def load(self, factory: Callable[[], Engine]) -> ModelInfo:
        self._engine = await self._call(factory)
        self.kernels, self.device = self._engine.kernels, self._engine.device
        return ModelInfo.from_mapping(await self._call(self._engine.info))

    async def admit(self, requests: Sequence[RowRequest]) -> list[tuple[int, int]]:
        """(its row, the tokens of its prompt) for each"""

        def admit_all() -> list[tuple[int, int]]:
            rows = self.engine.admit(requests)
            return [(row, self.engine.prompt_tokens(r.prompt)) for row, r in zip(rows, requests, strict=True)]

        return await self._timed(admit_all)

    async def restore(self, request: RowRequest, state: bytes) -> tuple[int, int, int]:
        """(its row, the AR steps that it has behind it, the tokens of its prompt)"""

        def restore_one() -> tuple[int, int, int]:
            row = self.engine.restore(request, state)
            return row, self.engine.progress(row)[0], self.engine.prompt_tokens(request.prompt)

        return await self._timed(restore_one)

    async def step(self, preview_steps: Mapping[int, Collection[int]]) -> StepOutcome:
        """One step of these rows; each with the steps after which it is to be seen."""
        wanted = dict(preview_steps)
        return await self._timed(lambda: _step(self.engine, wanted, self._snapshot_steps))

    async def snapshot(self, rows: Iterable[int]) -> dict[int, bytes]:
        """Of every row that has begun."""
        running = list(rows)
        return await self._timed(lambda: {r: self.engine.snapshot(r) for r in running if self.engine.progress(r)[0]})

    async def release(self, rows: Iterable[int]) -> None:
        doomed = list(rows)

        def release_all() -> None:
            for row in doomed:
                self.engine.release(row)

        try:
            await self._timed(release_all)
        except Exception as error:
            raise EngineBroken(f"The engine does not give its rows back: {error!r}") from error

    async def canary(self, info: ModelInfo) -> int:
        """Draw one picture before anybody may send work here; returns its AR steps."""
        return await self._timed(lambda: _draw_canary(self.engine, info, self._goes_on))

    @property
    def busy_s(self) -> float:
        """How long the present call has taken. Loading does not count: weights may come from far away."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def _goes_on(self) -> None:
        """A step of the call under way is done, and the next one begins."""
        self._began = time.monotonic()

    async def _timed(self, work: Callable[[], T]) -> T:
        self._began = time.monotonic()
        try:
            return await self._call(work)
        finally:
            self._began = None

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _step(engine: Engine, rows: Mapping[int, Collection[int]], snapshot_steps: int) -> StepOutcome:
    outcome = StepOutcome()
    finished = engine.step()
    for row in finished:
        try:
            outcome.images[row] = _pixels(engine, row)
        except Exception as error:  # one broken picture must not fail its neighbours
            log.exception("row %d finished, but its pixels cannot be read", row)
            outcome.failures[row] = error
        engine.release(row)
    outcome.progress = {row: engine.progress(row)[0] for row in rows if row not in finished}
    for row in (row for row, done in outcome.progress.items() if done in rows[row]):
        try:
            outcome.previews[row] = _pixels(engine, row)
        except Exception:  # a glimpse is not worth the picture
            log.exception("no preview of row %d", row)
    if snapshot_steps:
        due = [row for row, done in outcome.progress.items() if done % snapshot_steps == 0]
        try:
            outcome.snapshots = {row: engine.snapshot(row) for row in due}
        except Exception:  # the step itself went well, and its pictures are already out of their rows
            log.exception("no snapshots of rows %s", due)
    return outcome


def _pixels(engine: Engine, row: int) -> bytes:
    pixels, (width, height) = engine.image(row), engine.image_size
    if len(pixels) != width * height * 3:
        raise ValueError(f"the picture has {len(pixels)} bytes, not {width} x {height} x 3")
    return pixels


def _draw_canary(engine: Engine, info: ModelInfo, goes_on: Callable[[], None]) -> int:
    low = Sampling.from_mapping({**info.defaults, **info.presets["low"]})
    request = RowRequest(
        prompt=info.labels[0].split(",", 1)[0] if info.labels else CANARY_PROMPT,
        seed=0,
        # Large models are slow on a CPU, and nobody looks at this image.
        sampling=replace(
            low,
            num_inference_steps=min(8, low.num_inference_steps),
            diffusion_steps=min(12, low.diffusion_steps),
            diffusion_steps_final=None,
        ),
    )
    [row] = engine.admit([request])
    steps, asked = 0, request.sampling.num_inference_steps
    while row not in engine.step():
        goes_on()
        steps += 1
        if steps > asked:
            raise CanaryFailed(f"The canary image is not finished after {steps} steps; {asked} were requested.")
    try:
        pixels = _pixels(engine, row)
    except ValueError as error:
        raise CanaryFailed(f"{error}. Check the checkpoint and the device.") from error
    engine.release(row)
    if len(set(pixels)) < 2:
        raise CanaryFailed("The canary picture is blank. Check the checkpoint and the device.")
    return asked
