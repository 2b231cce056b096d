"""The engine on a thread of its own, so that the event loop renews leases while a step runs."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from server.engine_api import Engine, RowRequest
from server.errors import CanaryFailed, EngineBroken
from server.jobs import ModelInfo

log = logging.getLogger(__name__)
T = TypeVar("T")
CANARY_PROMPT = "a red apple"


@dataclass(slots=True)
class StepOutcome:
    """What one step did, collected in one hop to the engine's thread and back."""

    images: dict[int, bytes] = field(default_factory=dict)  #: finished rows, released already
    failures: dict[int, Exception] = field(default_factory=dict)  #: finished rows whose pixels could not be read
    progress: dict[int, int] = field(default_factory=dict)  #: AR steps done of rows still running


class EngineThread:
    """Every call to the engine goes through one thread: engines need no locks."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise EngineBroken("The engine is used before it was loaded.")
        return self._engine

    async def load(self, factory: Callable[[], Engine]) -> ModelInfo:
        self._engine = await self._call(factory)
        return ModelInfo.from_mapping(await self._call(self._engine.info))

    async def admit(self, requests: Sequence[RowRequest]) -> list[int]:
        return await self._call(lambda: self.engine.admit(requests))

    async def step(self, rows: Iterable[int]) -> StepOutcome:
        running = list(rows)
        return await self._call(lambda: _step(self.engine, running))

    async def release(self, rows: Iterable[int]) -> None:
        doomed = list(rows)

        def release_all() -> None:
            for row in doomed:
                self.engine.release(row)

        try:
            await self._call(release_all)
        except Exception as error:
            raise EngineBroken(f"The engine does not give its rows back: {error!r}") from error

    async def canary(self, info: ModelInfo) -> None:
        """Draw one picture before anybody may send work here."""
        await self._call(lambda: _draw_canary(self.engine, info))

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _step(engine: Engine, rows: list[int]) -> StepOutcome:
    outcome = StepOutcome()
    finished = engine.step()
    for row in finished:
        try:
            outcome.images[row] = engine.image(row)
        except Exception as error:  # one broken picture must not fail its neighbours
            log.exception("row %d finished, but its pixels cannot be read", row)
            outcome.failures[row] = error
        engine.release(row)
    outcome.progress = {row: engine.progress(row)[0] for row in rows if row not in finished}
    return outcome


def _draw_canary(engine: Engine, info: ModelInfo) -> None:
    preset = info.presets["low"]
    request = RowRequest(
        prompt=info.labels[0].split(",", 1)[0] if info.labels else CANARY_PROMPT,
        seed=0,
        # Large models are slow enough on a CPU that a picture nobody sees should be a rough one.
        num_inference_steps=min(8, preset["num_inference_steps"]),
        diffusion_steps=min(12, preset["diffusion_steps"]),
        guidance_scale=float(info.defaults["guidance_scale"]),
        guidance_schedule=str(info.defaults["guidance_schedule"]),
        temperature=float(info.defaults["temperature"]),
    )
    [row] = engine.admit([request])
    steps = 0
    while row not in engine.step():
        steps += 1
        if steps > request.num_inference_steps:
            raise CanaryFailed(
                f"The canary is not finished after {steps} steps; {request.num_inference_steps} were asked."
            )
    pixels = engine.image(row)
    engine.release(row)
    width, height = info.image_size
    if len(pixels) != width * height * 3 or len(set(pixels)) < 2:
        raise CanaryFailed(
            f"The canary picture is blank or has {len(pixels)} bytes, not {width}x{height}x3. "
            "Check the checkpoint and the device."
        )
