"""Ends a worker whose engine hangs: a thread that never returns can only be ended with its process."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from server.background import exit_now
from server.jobs import JobError
from server.worker.completion import Completion
from server.worker.engine.slot import EngineSlot

log = logging.getLogger(__name__)
CHECK_S = 0.1
#: Any status but a ConfigError's: `fluid serve` and every other supervisor restart the worker.
HUNG_STATUS = 70


class Watchdog:
    """Runs beside the worker's loop, which waits for the engine and so cannot watch it.

    While a worker starts, the canary image is watched, but not the loading of weights, which may come over a network.
    """

    def __init__(
        self, engine: EngineSlot, completion: Completion, timeout_s: float, stop_taking: Callable[[], Awaitable[None]]
    ) -> None:
        """`stop_taking` returns once no job can arrive any more: it would be taken from another worker and lost."""
        self._engine = engine
        self._completion = completion
        self._timeout_s = timeout_s
        self._stop_taking = stop_taking

    async def run(self) -> None:
        """Watch until a call takes longer than the timeout, then requeue all jobs and end the process."""
        while self._engine.thread.busy_s <= self._timeout_s:
            await asyncio.sleep(CHECK_S)
        log.critical("the engine has not answered for %g s (FLUID_STEP_TIMEOUT_S); ending the worker", self._timeout_s)
        error = JobError("engine_hung", f"A step took longer than {self._timeout_s:g} s and its worker was ended.")
        try:
            await self._stop_taking()
            await self._completion.requeue_all(error)
        except RedisError as failure:
            log.error("cannot requeue the jobs (%s); their leases will expire", failure)
        finally:
            exit_now(HUNG_STATUS)
