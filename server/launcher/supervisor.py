"""Starts, watches and stops Valkey, gateway and worker as separate processes (`fluid serve`)."""

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress

from redis.exceptions import RedisError

from server.background import stop_signals
from server.client import AsyncFluidClient
from server.errors import ConfigError
from server.launcher.children import Child, Restarts, Supervised
from server.launcher.embedded_valkey import EmbeddedValkey
from server.launcher.memory import default_maxmemory
from server.launcher.workers import Plan, PlannedWorker
from server.queue.job_queue import JobQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.queue.statistics import unserved_models
from server.settings import Settings

log = logging.getLogger(__name__)
WATCH_S = 0.2
VALKEY_START_S = 5.0  # then the other processes start without it


class Supervisor:
    """Runs a whole service. The first signal stops it gracefully, the second at once."""

    def __init__(self, settings: Settings, *, banner: bool = True, plan: Plan | None = None) -> None:
        """`plan` has the workers; None: one, as the settings say."""
        self.settings = settings
        self.banner = banner
        self._stop = asyncio.Event()
        self._valkey: EmbeddedValkey | None = None
        self._valkey_restarts = Restarts()
        self._plan = plan
        self._children: list[Supervised] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for name in stop_signals():
            loop.add_signal_handler(name, self._on_signal, name)
        try:
            await self._start()
            await self._watch()
        finally:
            await self._shut_down()

    async def _start(self) -> None:
        env = self._environment()
        if not self.settings.redis_url:
            if self.settings.replicas:
                raise ConfigError("FLUID_REPLICAS needs FLUID_REDIS_URL: the embedded Valkey has no replicas.")
            self._valkey = EmbeddedValkey(
                self.settings.data_path,
                fsync=self.settings.fsync,
                maxmemory_bytes=self.settings.valkey_mib << 20 or default_maxmemory(),
            )
            await self._start_valkey()
            env["FLUID_REDIS_URL"] = self._valkey.url
        if self._stop.is_set():
            return
        models = self._plan.models if self._plan else ()
        if models[1:] and not self.settings.default_model:
            env["FLUID_DEFAULT_MODEL"] = models[0]
        self._start_children(env, [Child("gateway", env)])
        if self.banner:
            self._say(f"starting; the {'models are' if models[1:] else 'model is'} being loaded ...")

    def _environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | self.settings.to_env()

    def _start_children(self, env: dict[str, str], first: list[Child]) -> None:
        """Start `first`, then the workers of the plan."""
        workers, grace_s = self._plan.workers if self._plan else [PlannedWorker()], self.settings.drain_s + 5
        self._children = [
            *first,
            *(
                Child("worker", env | {**each.env}, model=each.model, ranks=each.ranks, grace_s=grace_s)
                for each in workers
            ),
        ]
        if self._plan:
            self._tell(self._plan.text)
        for child in self._children:
            child.start()

    async def _start_valkey(self) -> None:
        """Start the embedded Valkey and give it a moment. Without it the gateway answers 503 and the worker waits."""
        if self._valkey is None:
            return
        self._valkey_restarts.started()
        self._valkey.launch()  # not on another thread: the kernel ends a child together with the thread that started it
        deadline = time.monotonic() + VALKEY_START_S
        while not (self._valkey.exited or self._stop.is_set() or time.monotonic() > deadline):
            if await asyncio.to_thread(self._valkey.ready):
                return
            await asyncio.sleep(0.02)
        if not (self._valkey.exited or self._stop.is_set()):
            log.warning("the embedded Valkey is still loading its data; requests get 503 until it has")

    async def _watch(self) -> None:
        announcing = asyncio.create_task(self._announce())
        try:
            while not self._stop.is_set():
                for child in self._children:
                    child.watch()
                await self._watch_valkey()
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await self._stop.wait()
        finally:
            announcing.cancel()

    async def _announce(self) -> None:
        """Once every model of the plan is ready, print the banner, and forget what only earlier starts have served."""
        began = time.monotonic()
        async with AsyncFluidClient(self.settings.base_url, use_proxy=False) as client:
            wanted = len(self._plan.models) if self._plan else 1
            while sum((await client.health()).get("models", {}).values()) < wanted:
                await asyncio.sleep(WATCH_S)
        if self.banner:
            self._say(_banner(self.settings, time.monotonic() - began))
        if self._valkey is not None:
            try:
                await self._forget_models(self._valkey.url)
            except RedisError as error:
                log.warning("models of earlier starts stay on the list: %s", error)

    async def _forget_models(self, url: str) -> None:
        """Take models off the list that no worker serves and no job waits for: this is the embedded Valkey's only
        service, and it has just started all of its workers."""
        async with connect(url, SOCKET_TIMEOUT_S) as redis:
            registry, queue = Registry(redis, self.settings.namespace), JobQueue(redis, self.settings)
            gone = await unserved_models(queue, registry)
            await registry.forget_models(gone)
        if gone:
            log.info("no longer listed, for no worker serves them: %s", ", ".join(gone))

    async def _watch_valkey(self) -> None:
        """Restart it on its data after it exited, with a longer backoff each time: its disk may be full."""
        if self._valkey is None or not self._valkey.exited:
            return
        if (pause := self._valkey_restarts.exited()) is not None:
            failure = await asyncio.to_thread(self._valkey.failure)
            log.error("%s\nRestarting it on its data in %g s; requests get 503 until then.", failure, pause)
        elif self._valkey_restarts.due:
            await self._start_valkey()

    def _on_signal(self, name: signal.Signals) -> None:
        # A closed terminal may send SIGHUP more than once; that is no impatience.
        if self._stop.is_set() and name != signal.SIGHUP:
            log.warning("stopping now; unfinished jobs stay in the queue")
            for child in self._children:
                child.kill()
        self._stop.set()

    async def _shut_down(self) -> None:
        """Stop the gateway first, so that requests in flight still find a worker, and Valkey last: it has the data."""
        if self.banner:
            self._say("stopping ...")
        for role in ("gateway", "worker"):
            stopping = (child.stop(self.settings.drain_s + 5) for child in self._children if child.role == role)
            await asyncio.gather(*stopping)
        if self._valkey is not None:
            await asyncio.to_thread(self._valkey.close)
        if self.banner:
            self._say("stopped; waiting jobs are kept for the next start")

    def _tell(self, text: str) -> None:
        if self.banner:
            self._say(text)
        else:
            log.info("%s", text)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # the terminal or `| tee` has gone; the processes are to be stopped all the same
            print(text, file=sys.stderr, flush=True)


class WorkerSupervisor(Supervisor):
    """Runs a worker alone, for `fluid worker --tensor-parallel`: the processes that share its model."""

    async def _start(self) -> None:
        if not self.settings.redis_url:
            raise ConfigError("A worker needs FLUID_REDIS_URL. `fluid serve` starts everything, including Redis.")
        self._start_children(self._environment(), [])


def _banner(settings: Settings, seconds: float) -> str:
    url = settings.base_url
    return f"""
  Fluid Serve is ready after {seconds:.1f} s

    playground  {url}/
    API docs    {url}/docs
    metrics     {url}/metrics

    curl {url}/v1/images/generations -H 'Content-Type: application/json' -H 'Accept: image/png' \\
         -d '{{"prompt": "a red apple, 3d style"}}' -o apple.png

  Ctrl-C stops it.
"""
