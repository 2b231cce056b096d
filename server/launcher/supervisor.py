"""Starts, watches and stops Valkey, gateway and worker as separate processes (`fluid serve`)."""

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from subprocess import Popen

from server.client import FluidClient
from server.errors import ConfigError
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings

log = logging.getLogger(__name__)
WATCH_S = 0.2
BACKOFF_S = (0.5, 1, 2, 5, 10, 30)
#: Exit statuses that a restart cannot fix: ours for a ConfigError, uvicorn's for a port in use.
CANNOT_START = (2, 3)
STABLE_S = 60.0  # a child that ran this long restarts with the shortest backoff


class Child:
    """One restartable process: `python -m server.cli <role>`."""

    def __init__(self, role: str, env: dict[str, str]) -> None:
        self.role = role
        self._env = env
        self._crashes = 0
        self._restart_at: float | None = None
        self._started_at = 0.0
        self.process: Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocesses.spawn([sys.executable, "-m", "server.cli", self.role], env=self._env)
        self._started_at = time.monotonic()
        self._restart_at = None

    def watch(self) -> None:
        """Restart after a crash, with a longer backoff each time. Raises ConfigError if a restart cannot help."""
        if self.process is None or self.process.poll() is None:
            return
        if self.process.returncode in CANNOT_START:
            raise ConfigError(f"The {self.role} cannot start; its message above says why.")
        now = time.monotonic()
        if self._restart_at is None:
            if now - self._started_at > STABLE_S:
                self._crashes = 0
            pause = BACKOFF_S[min(self._crashes, len(BACKOFF_S) - 1)]
            self._crashes += 1
            self._restart_at = now + pause
            log.error("%s exited with %s; restarting in %g s", self.role, self.process.returncode, pause)
        elif now >= self._restart_at:
            self.start()

    async def stop(self, grace_s: float) -> None:
        if self.process is not None:
            await subprocesses.stop_async(self.process, grace_s=grace_s)


class Supervisor:
    """Runs a whole service. The first signal stops it gracefully, the second at once."""

    def __init__(self, settings: Settings, *, banner: bool = True) -> None:
        self.settings = settings
        self.banner = banner
        self._stop = asyncio.Event()
        self._valkey: EmbeddedValkey | None = None
        self._children: list[Child] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_signal)
        try:
            self._start()
            await self._watch()
        finally:
            await self._shut_down()

    def _start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | self.settings.to_env()
        if not self.settings.redis_url:
            self._valkey = EmbeddedValkey(self.settings.data_path, fsync=self.settings.fsync)
            self._valkey.start()
            env["FLUID_REDIS_URL"] = self._valkey.url
        self._children = [Child("gateway", env), Child("worker", env)]
        for child in self._children:
            child.start()
        if self.banner:
            self._say("starting; the worker is loading the model ...")

    async def _watch(self) -> None:
        announced = not self.banner
        began = time.monotonic()
        with FluidClient(self.settings.base_url) as client:
            while not self._stop.is_set():
                for child in self._children:
                    child.watch()
                self._watch_valkey()
                if not announced and (await asyncio.to_thread(client.ready))[0]:
                    announced = True
                    self._say(_banner(self.settings, time.monotonic() - began))
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await self._stop.wait()

    def _watch_valkey(self) -> None:
        if self._valkey is not None and self._valkey.process is not None:
            status = self._valkey.process.poll()
            if status is not None:
                log.error("the embedded Valkey exited with %s; restarting it on its data", status)
                self._valkey.start()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            log.warning("stopping now; unfinished jobs stay in the queue")
            for child in self._children:
                if child.process is not None and child.process.poll() is None:
                    child.process.kill()
        self._stop.set()

    async def _shut_down(self) -> None:
        """Stop the gateway first, so that requests in flight still find a worker, and Valkey last: it has the data."""
        if self.banner:
            self._say("stopping ...")
        for child in self._children:
            await child.stop(self.settings.drain_s + 5)
        if self._valkey is not None:
            self._valkey.close()
        if self.banner:
            self._say("stopped; waiting jobs are kept for the next start")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


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
