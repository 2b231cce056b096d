"""The canary image of an engine that has just been loaded; in a reload, which no watchdog sees, within a time limit."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from server.errors import CanaryFailed
from server.model_info import ModelInfo
from server.sampling import Sampling
from server.worker.engine.protocol import Engine, RowRequest
from server.worker.engine.row_states import read_pixels
from server.worker.engine.thread import EngineThread

CANARY_PROMPT = "a red apple"
CHECK_S = 0.1


async def canary_within(thread: EngineThread, info: ModelInfo, limit_s: float) -> int:
    """Generate the canary image with at most `limit_s` for each step; returns its AR steps.

    Raises:
        CanaryFailed: the image is invalid, or the engine hangs. Its thread, which cannot be ended, is then left behind.
    """
    task = asyncio.create_task(thread.run(lambda engine: generate_canary(engine, info, thread.restart_clock)))
    while not task.done():
        await asyncio.wait({task}, timeout=CHECK_S)
        if thread.busy_s > limit_s:
            thread.hung = True
            thread.close()
            raise CanaryFailed(
                f"The canary image has not answered for {limit_s:g} s (FLUID_STEP_TIMEOUT_S); restart the worker to "
                "free its memory"
            )
    return task.result()


def generate_canary(engine: Engine, info: ModelInfo, step_done: Callable[[], None]) -> int:
    """Generate one image on an idle engine; returns its AR steps. Raises CanaryFailed."""
    low = Sampling.from_mapping({**info.defaults, **info.presets["low"]})
    steps = low.num_inference_steps
    if not info.has_fixed("num_inference_steps"):
        steps = min(8, steps)
    request = RowRequest(
        prompt=info.labels[0].split(",", 1)[0] if info.labels else CANARY_PROMPT,
        seed=0,
        # Large models are slow on a CPU, and this image is never shown.
        sampling=replace(
            low,
            num_inference_steps=steps,
            diffusion_steps=min(12, low.diffusion_steps),
            diffusion_steps_final=None,
        ),
    )
    [row] = engine.admit([request])
    made = 0
    while row not in engine.step():
        step_done()
        made += 1
        if made > steps:
            raise CanaryFailed(f"The canary image is not finished after {made} steps; {steps} were requested.")
    try:
        pixels = read_pixels(engine, row)
    except ValueError as error:
        raise CanaryFailed(f"{error}. Check the checkpoint and the device.") from error
    engine.release(row)
    if len(set(pixels)) < 2:
        raise CanaryFailed("The canary image is blank. Check the checkpoint and the device.")
    return steps
