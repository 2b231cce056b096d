"""The service under load: Valkey, gateways and workers with the fake engine, each a real process."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.job_queue import JobQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE

START_S = 60.0


@dataclass(frozen=True)
class Service:
    """The running processes by role, with a client of the queue."""

    settings: Settings
    gateways: list[Popen[bytes]]
    ports: list[int]  #: of the gateways
    workers: list[Popen[bytes]]
    valkey: Popen[bytes]
    queue: JobQueue

    @property
    def gateway(self) -> Popen[bytes]:
        """The first gateway, on the port of the settings."""
        return self.gateways[0]

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time used so far in seconds, by role; gateways and workers are summed."""
        return {
            "gateway": sum(cpu_s(gateway.pid) for gateway in self.gateways),
            "worker": sum(cpu_s(worker.pid) for worker in self.workers),
            "valkey": cpu_s(self.valkey.pid),
        }


@asynccontextmanager
async def service(workers: int, gateways: int = 1, **settings: Any) -> AsyncIterator[Service]:
    """Start the service, yield it once every worker is ready, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="fluid-load-") as folder, EmbeddedValkey(Path(folder)) as valkey:
        chosen = Settings(
            redis_url=valkey.url,
            engine=FAKE_ENGINE,
            port=free_port(),
            log_level="error",
            **{"max_queue": 1_000_000, **settings},
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | chosen.to_env()
        ports = [chosen.port, *(free_port() for _ in range(gateways - 1))]
        roles = [*(("gateway", "--port", str(port)) for port in ports), *[("worker",)] * workers]
        running = [subprocesses.spawn([sys.executable, "-m", "server.cli", *role], env=env) for role in roles]
        try:
            async with connect(valkey.url, SOCKET_TIMEOUT_S) as redis:
                await _ready(Registry(redis, chosen.namespace), ports, workers)
                if valkey.process is None:
                    raise RuntimeError("Valkey exited unexpectedly; see the log in its data folder.")
                queue = JobQueue(redis, chosen)
                yield Service(chosen, running[:gateways], ports, running[gateways:], valkey.process, queue)
        finally:
            for process in running:
                await subprocesses.stop_async(process, grace_s=10)


async def _ready(registry: Registry, ports: Sequence[int], workers: int) -> None:
    async with asyncio.timeout(START_S):
        while sum(worker.ready for worker in await registry.workers()) < workers:
            await asyncio.sleep(0.05)
        for port in ports:
            while not await _listens(port):
                await asyncio.sleep(0.05)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_s() -> tuple[float, float]:
    """Return the machine's processor time since its start as (busy, total), in seconds summed over all cores."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    per_s = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - idle) / per_s, sum(fields) / per_s
