"""A time limit for the canary image of a reload, whose engine no watchdog sees."""

import asyncio

from server.errors import CanaryFailed
from server.model_info import ModelInfo
from server.worker.engine.thread import EngineThread

CHECK_S = 0.1


async def canary_within(thread: EngineThread, info: ModelInfo, limit_s: float) -> int:
    """Generate the canary image with at most `limit_s` for each step; returns its AR steps.

    Raises:
        CanaryFailed: the image is invalid, or the engine hangs. Its thread, which cannot be ended, is then left behind.
    """
    task = asyncio.create_task(thread.canary(info))
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
