"""Ends a worker whose engine hangs: a thread that never returns can only be left behind with its process."""

import asyncio
import logging
import os

from redis.exceptions import RedisError

from server.jobs import JobError
from server.worker.completion import Completion
from server.worker.engine.thread import EngineThread

log = logging.getLogger(__name__)
LOOK_S = 0.1
#: Anything but a ConfigError's status: `fluid serve` and every other supervisor start the worker anew.
HUNG_STATUS = 70


class Watchdog:
    """Runs beside the worker's loop, which waits for the engine and so cannot look.

    Of a worker that starts it watches the canary picture, and not the loading of weights, which may come from far away.
    """

    def __init__(self, thread: EngineThread, ends: Completion, timeout_s: float) -> None:
        self.thread = thread
        self._ends = ends
        self._timeout_s = timeout_s

    async def forever(self) -> None:
        while self.thread.busy_s <= self._timeout_s:
            await asyncio.sleep(LOOK_S)
        log.critical("the engine has not answered for %g s (FLUID_STEP_TIMEOUT_S); ending the worker", self._timeout_s)
        error = JobError("engine_hung", f"A step took longer than {self._timeout_s:g} s and its worker was ended.")
        try:
            await self._ends.give_everything_back(error)
        except RedisError as failure:
            log.error("cannot give the jobs back (%s); their leases will lapse", failure)
        finally:
            logging.shutdown()
            os._exit(HUNG_STATUS)
