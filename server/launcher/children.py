"""Restartable child processes: a gateway, a worker, or the ranks of a worker that shares its model among devices."""

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from subprocess import Popen, TimeoutExpired
from typing import Protocol

from server.errors import ConfigError
from server.launcher import subprocesses

log = logging.getLogger(__name__)
BACKOFF_S = (0.5, 1, 2, 5, 10, 30)
#: Exit statuses that a restart cannot fix: ours for a ConfigError, uvicorn's for a port in use.
CANNOT_START = (2, 3)
STABLE_S = 60.0  # a child that ran this long restarts with the shortest backoff
FOLLOW_S = 5.0  # in which the other ranks end after the first


class Restarts:
    """When a process that has exited is started again: later each time, until it has run for STABLE_S."""

    def __init__(self) -> None:
        self._crashes = 0
        self._started_at = 0.0
        self._restart_at: float | None = None

    def started(self) -> None:
        self._started_at = time.monotonic()
        self._restart_at = None

    def exited(self) -> float | None:
        """Return the pause before the next start; None if it was returned before."""
        if self._restart_at is not None:
            return None
        now = time.monotonic()
        if now - self._started_at > STABLE_S:
            self._crashes = 0
        pause = BACKOFF_S[min(self._crashes, len(BACKOFF_S) - 1)]
        self._crashes += 1
        self._restart_at = now + pause
        return pause

    @property
    def due(self) -> bool:
        return self._restart_at is not None and time.monotonic() >= self._restart_at


class Supervised(Protocol):
    """A process that the supervisor starts, watches and stops."""

    role: str

    def start(self) -> None: ...
    def watch(self) -> None: ...
    def kill(self) -> None: ...
    async def stop(self, grace_s: float) -> None: ...


class Child:
    """`python -m server.cli <role>`, restarted after a crash; with `ranks`, a group of them that lives and ends as one.

    Rank 0 of a group is the worker. The others need no Redis and end when it does; if one of them ends, rank 0 requeues
    its jobs and all start anew.
    """

    def __init__(
        self, role: str, env: Mapping[str, str], *, model: str = "", ranks: int = 1, grace_s: float = 35.0
    ) -> None:
        """`grace_s` is how long rank 0 may take to end after another rank has; `model` tells workers apart."""
        self.role = role
        self.name = f"{role} of {model}" if model else role
        self._env = env
        self._ranks = ranks
        self._grace_s = grace_s
        self._restarts = Restarts()
        self._ending_at: float | None = None
        self._status = 0
        self._meeting: tempfile.TemporaryDirectory[str] | None = None
        self.processes: list[Popen[bytes]] = []

    def start(self) -> None:
        self._ending_at = None
        self._restarts.started()
        command = [sys.executable, "-m", "server.cli", self.role]
        self.processes = [subprocesses.spawn(command, env=env) for env in self._environments()]

    def _environments(self) -> Sequence[Mapping[str, str]]:
        """Each rank's environment, as torchrun's; they meet through a file that only this user can write."""
        if self._ranks == 1:
            return [self._env]
        if self._meeting is not None:
            self._meeting.cleanup()
        self._meeting = tempfile.TemporaryDirectory(prefix="fluid-ranks-")
        group = {
            "PROCESS_GROUP_FILE": os.path.join(self._meeting.name, "ranks"),
            "WORLD_SIZE": str(self._ranks), "LOCAL_WORLD_SIZE": str(self._ranks),
        }  # fmt: skip
        if sys.platform == "linux":  # all on this host: nothing of it is for the network
            group["GLOO_SOCKET_IFNAME"] = self._env.get("GLOO_SOCKET_IFNAME", "lo")
        return [{**self._env, **group, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(self._ranks)]

    def watch(self) -> None:
        """Restart after a crash, with a longer backoff each time. Raises ConfigError if a restart cannot help."""
        ended = [process for process in self.processes if process.poll() is not None]
        if not ended:
            return
        if any(process.returncode in CANNOT_START for process in ended):
            raise ConfigError(f"The {self.name} cannot start; its message above says why.")
        if self._ending_at is None:
            self._status, self._ending_at = ended[0].returncode, time.monotonic()
            self._end_group()
        if len(ended) < len(self.processes):
            if time.monotonic() - self._ending_at > self._grace_s:
                self.kill()
            return
        if (pause := self._restarts.exited()) is not None:
            log.error("%s exited with %s; restarting in %g s", self.name, self._status, pause)
        elif self._restarts.due:
            self.start()

    def _end_group(self) -> None:
        """One rank has ended: let rank 0 hand its jobs back, and end the others, which can do nothing without it."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                log.error("a rank of the %s has ended; ending rank %d", self.name, rank)
                process.terminate() if rank == 0 else process.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()

    async def stop(self, grace_s: float) -> None:
        """Stop rank 0 with this grace; the others end after it."""
        for rank, process in enumerate(self.processes):
            if rank:
                await asyncio.to_thread(_wait, process, FOLLOW_S)
            else:
                await subprocesses.stop_async(process, grace_s=grace_s)
        if self._meeting is not None:
            self._meeting.cleanup()


def _wait(process: "Popen[bytes]", seconds: float) -> None:
    """Wait for a process, and kill it if it does not end."""
    try:
        process.wait(timeout=seconds)
    except TimeoutExpired:
        process.kill()
        process.wait()
