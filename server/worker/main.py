"""Start a worker: connect to Redis, load the engine, run until stopped."""

import asyncio
import contextlib
import logging
import signal
from dataclasses import replace

from redis.exceptions import RedisError

from server.background import exit_now, stop_signals
from server.errors import ConfigError, EngineBroken
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.settings import Settings
from server.telemetry.tracing import open_tracing
from server.worker.engine.loader import load_engine
from server.worker.engine.protocol import Engine
from server.worker.loop import Worker

log = logging.getLogger(__name__)
DEREGISTER_S = 1.0  # so that a signal is heard at once although Redis is away


async def serve(settings: Settings) -> None:
    """Run a worker until it is drained. Raises ConfigError without a Redis to connect to."""
    if not settings.redis_url:
        raise ConfigError("A worker needs FLUID_REDIS_URL. `fluid serve` starts everything, including Redis.")
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.redis_url, SOCKET_TIMEOUT_S))

        def factory(checkpoint: str) -> Engine:
            return load_engine(replace(settings, checkpoint=checkpoint))

        tracing = open_tracing(settings, "worker")
        stack.callback(tracing.close)
        worker = Worker(settings, LeaseQueue(redis, settings), Registry(redis, settings.namespace), factory, tracing)
        loop = asyncio.get_running_loop()
        exits = set[asyncio.Task[None]]()

        def stop() -> None:
            if worker.heartbeat.state == "loading":
                exits.add(asyncio.create_task(_exit_while_loading(worker)))
            else:
                worker.stop()

        def hang_up() -> None:
            if not worker.draining:  # a terminal that closes may send SIGHUP twice; that is no impatience
                stop()

        for name in stop_signals():
            loop.add_signal_handler(name, hang_up if name == signal.SIGHUP else stop)
        try:
            await worker.run()
        except EngineBroken as error:
            if worker.hung_thread:
                log.error("%s", error)
                exit_now(1)
            raise
        if worker.hung_thread:  # the interpreter would wait for it
            exit_now(0)


async def _exit_while_loading(worker: Worker) -> None:
    """End the process: nothing was taken, so nothing can be lost, and a thread that loads weights cannot be stopped."""
    log.info("stopped while loading")
    try:
        await asyncio.wait_for(worker.registry.deregister(worker.id), DEREGISTER_S)
    except (TimeoutError, RedisError) as error:
        log.warning("cannot deregister: %s", error)
    finally:
        exit_now(0)
