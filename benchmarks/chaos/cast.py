"""Processes under test: a real Valkey, gateways and workers; a gateway or worker that ends is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from subprocess import Popen

from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE

GATEWAYS, WORKERS = 2, 4
REPLACE_S = 0.1  # longest time between the end of a process and the start of its replacement


class Cast:
    """Context manager that starts and stops the processes; `keep_alive` replaces those that end in between."""

    def __init__(self, data_dir: Path, lease_s: float, random: Random) -> None:
        self.valkey = EmbeddedValkey(data_dir)
        self.lease_s = lease_s
        self.kills: Counter[str] = Counter()
        self.frozen: set[int] = set()  # process ids under SIGSTOP
        self.gateways: dict[int, Popen[bytes]] = {}  # by port
        self.workers: list[Popen[bytes]] = []
        self._random = random

    def __enter__(self) -> Cast:
        self.valkey.start()
        try:
            self.settings = Settings(
                redis_url=self.valkey.url, engine=FAKE_ENGINE, fake_step_ms=5.0, max_rows=8, lease_s=self.lease_s,
                # Every crash costs each job on that worker an attempt, and here workers crash every few seconds.
                max_attempts=6, snapshot_steps=8, step_timeout_s=2 * self.lease_s, drain_s=2.0,
                result_ttl_s=86400, log_level="error",
            )  # fmt: skip
            self.gateways = {port: self._gateway(port) for port in (free_port() for _ in range(GATEWAYS))}
            self.workers = [self._start("worker") for _ in range(WORKERS)]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, role: str, *flags: str) -> Popen[bytes]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | self.settings.to_env()
        return subprocesses.spawn([sys.executable, "-m", "server.cli", role, *flags], env=env, quiet=True)

    def _gateway(self, port: int) -> Popen[bytes]:
        return self._start("gateway", "--port", str(port))

    def address(self) -> str:
        """Return the base URL of a random gateway, dead or alive: clients cannot know which."""
        return f"http://127.0.0.1:{self._random.choice(list(self.gateways))}"

    async def keep_alive(self) -> None:
        """Replace ended gateways and workers until canceled."""
        while True:
            for port, gateway in self.gateways.items():
                if gateway.poll() is not None:
                    self.gateways[port] = self._gateway(port)
            for i, worker in enumerate(self.workers):
                if worker.poll() is not None:
                    self.workers[i] = self._start("worker")
            await asyncio.sleep(REPLACE_S)

    def live_workers(self) -> list[Popen[bytes]]:
        """Return workers that are neither dead nor frozen; they may not be ready yet."""
        return [w for w in self.workers if w.poll() is None and w.pid not in self.frozen]

    def strike(self, fault: str, process: Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to a process, and count the fault."""
        self.kills[fault] += 1
        process.send_signal(number)

    async def restart_valkey(self, down_s: float) -> None:
        """Kill Valkey, and after `down_s` seconds start it again on the same folder."""
        process = self.valkey.process
        if process is None:
            raise RuntimeError("Valkey was never started; enter the context first.")
        self.strike("valkey", process, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(self.valkey.start)

    def close(self) -> None:
        for process in [*self.workers, *self.gateways.values()]:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.valkey.close()
