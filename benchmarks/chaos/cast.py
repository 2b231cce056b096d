"""Processes under test: Valkey with a replica, gateways and workers; one that ends is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from subprocess import Popen
from typing import Any

from benchmarks.chaos.clock import Clocks, find_library
from benchmarks.chaos.disk import SmallDisk
from benchmarks.chaos.redis_pair import Node, RedisPair
from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from server.worker.watchdog import HUNG_STATUS

GATEWAYS, WORKERS = 2, 4
EXIT_S = 0.3  # a Valkey that has met a full disk needs a moment to exit
REPLACE_S = 0.1  # longest time between the end of a process and the start of its replacement
#: How a worker ends because of a prompt that asks for it: [kill] and [hang].
BY_PROMPT = (-signal.SIGKILL, HUNG_STATUS)


class Cast:
    """Context manager that starts and stops the processes; `keep_alive` replaces those that end in between.

    Without modes there is one Valkey on a unix socket; with any of them a pair behind a proxy.
    """

    def __init__(self, data_dir: Path, lease_s: float, random: Random, modes: Collection[str] = ()) -> None:
        self.lease_s = lease_s
        self.kills: Counter[str] = Counter()
        self.unasked: list[str] = []  # processes that ended although no fault and no prompt asked for it
        self.frozen: set[int] = set()  # process ids under SIGSTOP
        self.gateways: dict[int, Popen[bytes]] = {}  # by port
        self.workers: list[Popen[bytes]] = []
        self.clocks: Clocks | None = None
        self.disk: SmallDisk | None = None
        self.pair: RedisPair | None = None
        self.log = data_dir / "log"  # of gateways and workers
        self._data_dir, self._random, self._modes = data_dir, random, modes
        self._alone: EmbeddedValkey | None = None
        self._struck: set[int] = set()  # process ids that a fault has ended, or will
        self._valkey_is_down = False  # by a fault
        self._stack = ExitStack()

    def __enter__(self) -> Cast:
        with ExitStack() as stack:
            self._start_valkey(stack)
            self.settings = Settings(
                redis_url=self.url,
                engine=FAKE_ENGINE, fake_step_ms=5.0, max_rows=8, lease_s=self.lease_s,
                # Every crash costs each job on that worker an attempt, and here workers crash every few seconds.
                max_attempts=6, snapshot_steps=8, step_timeout_s=2 * self.lease_s, drain_s=2.0,
                result_ttl_s=86400, log_level="error", **self._further_settings(),
            )  # fmt: skip
            stack.callback(self._kill_all)
            self.gateways = {port: self._gateway(port) for port in (free_port() for _ in range(GATEWAYS))}
            self.workers = [self._start("worker") for _ in range(WORKERS)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_valkey(self, stack: ExitStack) -> None:
        if "clock" in self._modes:
            self.clocks = Clocks(self._data_dir / "clocks", find_library())
        if "disk" in self._modes:
            self.disk = stack.enter_context(SmallDisk(self._data_dir / "a"))
        if self._modes:
            env = self.clocks.env("valkey") if self.clocks else {}
            self.pair = stack.enter_context(RedisPair(self._data_dir, env))
        else:
            self._alone = stack.enter_context(EmbeddedValkey(self._data_dir / "valkey"))

    def _further_settings(self) -> dict[str, Any]:
        return {}

    @property
    def url(self) -> str:
        return self.pair.url if self.pair else self.valkey.url

    @property
    def valkey(self) -> EmbeddedValkey:
        """The primary."""
        found = self.pair.primary if self.pair else self._alone
        if found is None:
            raise RuntimeError("Valkey was never started; enter the context first.")
        return found

    def _start(self, role: str, *flags: str) -> Popen[bytes]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | self.settings.to_env()
        env |= self.clocks.env(role) if self.clocks else {}
        command = [sys.executable, "-m", "server.cli", role, *flags]
        return subprocesses.spawn(["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(self.log), *command], env=env)

    def _gateway(self, port: int) -> Popen[bytes]:
        return self._start("gateway", "--port", str(port))

    def reload(self, checkpoint: str) -> Popen[bytes]:
        """Start `fluid reload`."""
        self.kills["reload"] += 1
        return self._start("reload", "--to", checkpoint, "--timeout", "10")

    def address(self) -> str:
        """Return the base URL of a random gateway, dead or alive: clients cannot know which."""
        return f"http://127.0.0.1:{self._random.choice(list(self.gateways))}"

    async def keep_alive(self) -> None:
        """Replace ended processes until canceled, and note those that ended unasked."""
        while True:
            for port, gateway in self.gateways.items():
                if gateway.poll() is not None:
                    self._note(gateway, "gateway")
                    self.gateways[port] = self._gateway(port)
            for i, worker in enumerate(self.workers):
                if worker.poll() is not None:
                    self._note(worker, "worker")
                    self.workers[i] = self._start("worker")
            if self.pair and not self._valkey_is_down:
                for node in self.pair.ended():
                    self.unasked.append(node.failure())
                    await asyncio.to_thread(self.pair.restart, node)
            await asyncio.sleep(REPLACE_S)

    def _note(self, process: Popen[bytes], role: str) -> None:
        if process.pid in self._struck or (role == "worker" and process.returncode in BY_PROMPT):
            return
        self.unasked.append(
            f"a {role} (pid {process.pid}) ended with status {process.returncode}, and nothing had asked it"
        )

    def live_workers(self) -> list[Popen[bytes]]:
        """Return workers that are neither dead nor frozen; they may not be ready yet."""
        return [w for w in self.workers if w.poll() is None and w.pid not in self.frozen]

    def strike(self, fault: str, process: Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to a process, and count the fault."""
        self.kills[fault] += 1
        if number != signal.SIGSTOP:
            self._struck.add(process.pid)
        process.send_signal(number)

    async def restart_valkey(self, down_s: float) -> None:
        """Kill Valkey, the primary of a pair, and after `down_s` seconds start it again on the same folder."""
        process = self.valkey.process
        if process is None:
            raise RuntimeError("Valkey was never started; enter the context first.")
        self._valkey_is_down = True
        try:
            self.strike("valkey", process, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            await asyncio.sleep(down_s)
            await asyncio.to_thread(self.valkey.start)
        finally:
            self._valkey_is_down = False

    async def fill_disk(self, full_s: float) -> None:
        """Fill the disk of one node, which ends a Valkey that cannot write its log any more; free it, and restart."""
        if self.pair is None or self.disk is None:
            raise RuntimeError("there is no small disk")
        node: Node = self.pair.node_in(self.disk.folder)
        self._valkey_is_down = True
        try:
            self.kills["disk"] += 1
            await asyncio.to_thread(self.disk.fill)
            await asyncio.sleep(full_s)
            self.disk.free()
            await asyncio.sleep(EXIT_S)
            if node.exited:
                await asyncio.to_thread(self.pair.restart, node)
        finally:
            self._valkey_is_down = False

    def _kill_all(self) -> None:
        for process in [*self.workers, *self.gateways.values()]:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
