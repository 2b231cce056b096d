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
    """The results of one step, collected in a single round trip to the engine's thread."""

    images: dict[int, bytes] = field(default_factory=dict)  #: pixels of finished rows, which are released already
    failures: dict[int, Exception] = field(default_factory=dict)  #: finished rows whose pixels could not be read
    progress: dict[int, int] = field(default_factory=dict)  #: AR steps done of rows still running
    snapshots: dict[int, bytes] = field(default_factory=dict)  #: states of rows that are due for one
    previews: dict[int, bytes] = field(default_factory=dict)  #: pixels of unfinished rows whose caller wants previews


class EngineThread:
    """Runs every call to the engine on one thread, so that engines need no locks."""

    def __init__(self, snapshot_steps: int) -> None:
        self._snapshot_steps = snapshot_steps
        self._began: float | None = None  #: start of the current call, if it should take about a step
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None
        self.hung = False  #: a call never returned; the interpreter would wait for it at exit
        self.kernels = self.device = ""  #: the engine's, once it is loaded

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise EngineBroken("The engine was used before it was loaded.")
        return self._engine

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    async def load(self, factory: Callable[[], Engine]) -> ModelInfo:
        self._engine = await self._call(factory)
        self.kernels, self.device = self._engine.kernels, self._engine.device
        return ModelInfo.from_mapping(await self._call(self._engine.info))

    async def admit(self, requests: Sequence[RowRequest]) -> list[tuple[int, int]]:
        """Admit all requests or none; (row, number of prompt tokens) for each. Raises what the engine raises."""

        def admit_all() -> list[tuple[int, int]]:
            rows = self.engine.admit(requests)
            return [(row, self.engine.prompt_tokens(r.prompt)) for row, r in zip(rows, requests, strict=True)]

        return await self._timed(admit_all)

    async def restore(self, request: RowRequest, state: bytes) -> tuple[int, int, int]:
        """Resume a request from a snapshot; (row, AR steps done, number of prompt tokens)."""

        def restore_one() -> tuple[int, int, int]:
            row = self.engine.restore(request, state)
            return row, self.engine.progress(row)[0], self.engine.prompt_tokens(request.prompt)

        return await self._timed(restore_one)

    async def step(self, preview_steps: Mapping[int, Collection[int]]) -> StepOutcome:
        """Run one step for every row. `preview_steps`: for each row the steps after which a preview is due."""
        wanted = dict(preview_steps)
        return await self._timed(lambda: _step(self.engine, wanted, self._snapshot_steps))

    async def snapshot(self, rows: Iterable[int]) -> dict[int, bytes]:
        """Snapshots of those rows that have made at least one step."""
        running = list(rows)
        return await self._timed(lambda: {r: self.engine.snapshot(r) for r in running if self.engine.progress(r)[0]})

    async def release(self, rows: Iterable[int]) -> None:
        """Free the rows. Raises EngineBroken if the engine fails even at that."""
        doomed = list(rows)

        def release_all() -> None:
            for row in doomed:
                self.engine.release(row)

        try:
            await self._timed(release_all)
        except Exception as error:
            raise EngineBroken(f"The engine failed to release its rows: {error!r}") from error

    async def canary(self, info: ModelInfo) -> int:
        """Generate one image before the worker takes jobs; returns its AR steps. Raises CanaryFailed."""
        return await self._timed(lambda: _generate_canary(self.engine, info, self._restart_clock))

    @property
    def busy_s(self) -> float:
        """How long the current call has taken. Loading does not count: weights may come over a network."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def _restart_clock(self) -> None:
        """Measure `busy_s` from now: the current call has finished one of its steps."""
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
        except Exception as error:  # one broken image must not fail its neighbours
            log.exception("row %d finished, but its pixels cannot be read", row)
            outcome.failures[row] = error
        engine.release(row)
    outcome.progress = {row: engine.progress(row)[0] for row in rows if row not in finished}
    for row in (row for row, done in outcome.progress.items() if done in rows[row]):
        try:
            outcome.previews[row] = _pixels(engine, row)
        except Exception:  # a failed preview must not cost the image
            log.exception("no preview of row %d", row)
    if snapshot_steps:
        due = [row for row, done in outcome.progress.items() if done % snapshot_steps == 0]
        try:
            outcome.snapshots = {row: engine.snapshot(row) for row in due}
        except Exception:  # the step itself succeeded, and its images have already left their rows
            log.exception("no snapshots of rows %s", due)
    return outcome


def _pixels(engine: Engine, row: int) -> bytes:
    pixels, (width, height) = engine.image(row), engine.image_size
    if len(pixels) != width * height * 3:
        raise ValueError(f"the image has {len(pixels)} bytes, not {width} x {height} x 3")
    return pixels


def _generate_canary(engine: Engine, info: ModelInfo, step_done: Callable[[], None]) -> int:
    low = Sampling.from_mapping({**info.defaults, **info.presets["low"]})
    request = RowRequest(
        prompt=info.labels[0].split(",", 1)[0] if info.labels else CANARY_PROMPT,
        seed=0,
        # Large models are slow on a CPU, and this image is never shown.
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
        step_done()
        steps += 1
        if steps > asked:
            raise CanaryFailed(f"The canary image is not finished after {steps} steps; {asked} were requested.")
    try:
        pixels = _pixels(engine, row)
    except ValueError as error:
        raise CanaryFailed(f"{error}. Check the checkpoint and the device.") from error
    engine.release(row)
    if len(set(pixels)) < 2:
        raise CanaryFailed("The canary image is blank. Check the checkpoint and the device.")
    return asked
