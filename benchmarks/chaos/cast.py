"""The processes of a chaos run: a real Valkey, one gateway, several workers; whoever dies is started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from random import Random
from subprocess import Popen

from server import processes
from server.demo import free_port
from server.embedded import EmbeddedValkey
from server.settings import Settings

WORKERS = 3


class Cast:
    """Start with `open`; `keep_alive` replaces what has ended until the run is over."""

    def __init__(self, data_dir: Path):
        self.valkey = EmbeddedValkey(data_dir)
        self.kills: dict[str, int] = {}
        self.gateway: Popen[bytes] | None = None
        self.workers: list[Popen[bytes]] = []
        self.stopped: set[int] = set()  # processes under SIGSTOP
        self.closing = False

    def open(self) -> None:
        self.valkey.start()
        self.settings = Settings(
            redis_url=self.valkey.url, engine="fake", port=free_port(), lease_s=2.0, max_rows=8, fake_step_ms=5.0,
            # Ordinary jobs lose a try with each worker that is killed under them; poison ends all the same.
            max_attempts=6, snapshot_steps=4, result_ttl_s=7200, log_level="error",
        )  # fmt: skip
        self.gateway = self._start("gateway")
        self.workers = [self._start("worker") for _ in range(WORKERS)]

    def _start(self, role: str) -> Popen[bytes]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | self.settings.to_env()
        return processes.spawn([sys.executable, "-m", "server.cli", role], env=env, quiet=True)

    async def keep_alive(self) -> None:
        while not self.closing:
            if self.gateway is not None and self.gateway.poll() is not None:
                self.gateway = self._start("gateway")
            self.workers = [w if w.poll() is None else self._start("worker") for w in self.workers]
            await asyncio.sleep(0.05)

    def hit(self, what: str, process: Popen[bytes], number: int) -> None:
        """Send a signal and count it."""
        self.kills[what] = self.kills.get(what, 0) + 1
        process.send_signal(number)

    def a_worker(self, random: Random) -> Popen[bytes] | None:
        """One that is neither dead nor stopped."""
        able = [w for w in self.workers if w.poll() is None and w.pid not in self.stopped]
        return random.choice(able) if able else None

    async def restart_valkey(self) -> None:
        """kill -9, a moment without, and again on the same folder."""
        process = self.valkey.process
        if process is None:
            raise RuntimeError("Valkey was never started.")
        self.hit("valkey", process, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(self.valkey.start)

    def close(self) -> None:
        self.closing = True
        for process in [*self.workers, self.gateway]:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self.valkey.close()
