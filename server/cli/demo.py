"""`fluid demo`: the whole service on a free port, one HTTP request, and a clean stop."""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

from server.cli.progress import Status
from server.client import FluidClient, GeneratedImage
from server.errors import ServiceError
from server.launcher import subprocesses
from server.settings import Settings

START_TIMEOUT_S = 300.0


def run(settings: Settings, prompt: str, out: Path, seed: int | None) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fluid-demo-") as folder:
        own = replace(settings, port=free_port(), host="127.0.0.1", data_dir=folder, log_level="warning")
        with running_service(own, began) as client:
            started_s = time.monotonic() - began
            sent = time.monotonic()
            options = {} if seed is None else {"seed": seed}
            [picture] = client.generate(prompt, **options)
            request_s = time.monotonic() - sent
            path = picture.save(out)
    _report(path, prompt, picture, started_s, request_s)


@contextmanager
def running_service(settings: Settings, began: float) -> Iterator[FluidClient]:
    """`fluid serve` in a child process, ready, and stopped afterwards."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | settings.to_env()
    service = subprocesses.spawn([sys.executable, "-m", "server.cli", "serve", "--quiet"], env=env)
    try:
        with FluidClient(settings.base_url, timeout_s=settings.request_timeout_s) as client:
            _await_ready(client, service, began)
            yield client
    finally:
        subprocesses.stop(service, grace_s=settings.drain_s + 15)


def _await_ready(client: FluidClient, service: "Popen[bytes]", began: float) -> None:
    with Status("starting") as status:
        while True:
            is_ready, reason = client.ready()
            if is_ready:
                status.say("ready")
                return
            if service.poll() is not None:
                raise ServiceError(f"The service ended with status {service.returncode} while it started.")
            if time.monotonic() - began > START_TIMEOUT_S:
                raise ServiceError(f"The service is not ready after {START_TIMEOUT_S:g} s: {reason}.")
            status.say(reason)
            time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _report(path: Path, prompt: str, picture: GeneratedImage, started_s: float, request_s: float) -> None:
    m = picture.metrics
    rest = max(0.0, request_s - m["queue_time"] - m["predict_time"] - m["encode_time"])
    rows = [
        ("start-up", started_s),
        ("queue", m["queue_time"]),
        ("inference", m["predict_time"]),
        ("encode", m["encode_time"]),
        ("HTTP and the rest", rest),
        ("request in all", request_s),
        ("total", started_s + request_s),
    ]
    print(f"\n  {path}  <-  {prompt!r}")
    print(f"  seed {picture.seed}: the same prompt and seed draw this very picture again\n")
    for name, seconds in rows:
        print(f"  {name:<18} {seconds:8.3f} s")
    fluid = "fluid" if shutil.which("fluid") else os.path.relpath(Path(sys.executable).with_name("fluid"))
    print(f"\n  Next: `{fluid} serve`, then open http://127.0.0.1:8000/ in a browser;")
    print(f"        `{fluid} generate --help` draws without a server.\n")
