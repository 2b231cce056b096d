"""Real service processes on free ports, and waiting with a deadline instead of sleeping."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import Popen
from threading import Thread
from typing import Any, TypeVar

import httpx

from server.client import FluidClient
from server.jobs import JobInput, Lease
from server.launcher import subprocesses
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.scripts import QueueConnection
from server.sampling import SAMPLING_FIELDS, Sampling
from server.settings import Settings

T = TypeVar("T")
MODEL = "fake"


#: Longer than any stall of a busy machine. A test gives a shorter limit only where it tests the shortness.
PATIENCE_S = 60.0


def until(check: Callable[[], T], *, seconds: float = PATIENCE_S, what: str = "the condition") -> T:
    """Poll until `check` returns a true value, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.02)
    return value


async def until_async(check: Callable[[], Awaitable[T]], *, seconds: float = PATIENCE_S) -> T:
    """Like `until`, for an async check."""
    async with asyncio.timeout(seconds):
        while not (value := await check()):
            await asyncio.sleep(0.02)
        return value


def child_env(settings: Settings) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | settings.to_env()


def start(role: str, settings: Settings, *flags: str) -> "Popen[bytes]":
    return subprocesses.spawn([sys.executable, "-m", "server.cli", role, *flags], env=child_env(settings))


def fluid(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run an operator's command against a running service."""
    command = [sys.executable, "-m", "server.cli", *words]
    return subprocess.run(command, env=child_env(settings), capture_output=True, text=True, timeout=2 * PATIENCE_S)


def status_of(url: str, key: str | None = None) -> int:
    """Status code of a GET; 0 while nothing listens there."""
    try:
        return httpx.get(url, headers={"Authorization": f"Bearer {key}"} if key else {}).status_code
    except httpx.TransportError:
        return 0


class Hold:
    """Keeps rows of the fake engine in the middle of their steps until `release`, however the test is stalled."""

    def __init__(self, folder: Path, seed: int | None = None) -> None:
        """`seed` holds that image of a job alone."""
        self._pattern = folder / ("held" if seed is None else "held-{seed}")
        self._file = Path(str(self._pattern).replace("{seed}", str(seed)))
        self._file.touch()

    def prompt(self, step: int | None = None) -> str:
        """A prompt that is held after `step`, or at half of the steps."""
        return f"a cat [hold {self._pattern}{'' if step is None else f' {step}'}]"

    def reached(self, client: FluidClient, job_id: str) -> None:
        """Wait until every image of the job stands at half of its steps, an even number."""

        def at_half() -> bool:
            progress = client.job(job_id)["progress"]
            return bool(2 * progress["step"] >= progress["steps"])

        until(at_half, what="half of the steps")

    def release(self) -> None:
        self._file.unlink(missing_ok=True)


class Service:
    """A gateway and any number of fake workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gateway = start("gateway", settings)
        self.workers: list[Popen[bytes]] = []
        self.client = FluidClient(settings.base_url, timeout_s=PATIENCE_S, max_retries=0)

    def add_worker(self, **changes: Any) -> "Popen[bytes]":
        self.workers.append(start("worker", replace(self.settings, **changes)))
        return self.workers[-1]

    def close(self) -> None:
        self.client.close()
        for process in [*self.workers, self.gateway]:
            subprocesses.stop(process, grace_s=10)


@contextmanager
def running_service(settings: Settings) -> Iterator[Service]:
    """A service with one worker, which is ready."""
    running = Service(settings)
    running.add_worker()
    try:
        running.client.wait_ready(timeout_s=PATIENCE_S)
        yield running
    finally:
        running.close()


def alive(pid: int) -> bool:
    """True for a running process; a zombie, which its parent has yet to reap, counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """An HTTP server in a thread, on a free loopback port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SAMPLING: dict[str, object] = {
    "num_inference_steps": 4,
    "diffusion_steps": 4,
    "guidance_scale": 3.0,
    "guidance_schedule": "linear",
    "temperature": 1.0,
}


def job_input(prompt: str = "an apple", n: int = 1, **changes: object) -> JobInput:
    values: dict[str, object] = dict(
        prompt=prompt,
        model=MODEL,
        n=n,
        width=32,
        height=32,
        quality="low",
        output_format="png",
        output_compression=100,
        seed=7,
        sampling=Sampling.from_mapping(SAMPLING | changes),
    )
    others = {name: value for name, value in changes.items() if name not in SAMPLING_FIELDS}
    return JobInput(**(values | others))  # type: ignore[arg-type]


async def accept(queue: JobQueue, job_id: str, **changes: object) -> str:
    await queue.enqueue(Submission(job_id, job_input(**changes), "job"))
    return job_id


async def take(leases: LeaseQueue, consumer: str = "w1") -> Lease:
    lease = await leases.take(consumer, MODEL)
    assert lease is not None
    return lease


async def reclaimed(leases: LeaseQueue, consumer: str) -> list[Lease]:
    """Reclaim lapsed leases, polling as a worker does until there is one."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await leases.reclaim(consumer, MODEL, [], count=10)):
            await asyncio.sleep(0.02)
        return found


async def lapse(queue: QueueConnection, *job_ids: str) -> None:
    """Expire the leases of the jobs, as if their workers had fallen silent."""
    await queue.redis.zadd(queue.keys.leases_zset(MODEL), dict.fromkeys(job_ids, 0))


async def empty(queue: QueueConnection) -> bool:
    """True if no key says that a job waits or runs."""
    waiting = [key async for key in queue.redis.scan_iter(f"{queue.keys.root}:*")]
    kinds = {key.split(":")[1] for key in waiting}
    return not kinds & {"waiting", "waiting_since", "callers", "leases", "deadlines", "resume", "input"}


def client_of(service: Service, key: str | None) -> FluidClient:
    return FluidClient(service.settings.base_url, api_key=key, max_retries=0)
