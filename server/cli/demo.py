"""`fluid demo`: start the whole service on a free port, send one request over HTTP, stop it."""

import argparse
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

from server.cli.flags import add_command, add_model_flags
from server.cli.progress import Status
from server.client import FluidClient, GeneratedImage
from server.errors import ConfigError, ServiceError
from server.images.codec import check_output, format_from_name
from server.launcher import subprocesses
from server.settings import Settings

START_TIMEOUT_S = 300.0
FIRST_PORT, PORTS = 20_000, 12_000
#: The demonstration has a queue of its own, whatever the environment says: its worker would take other callers' jobs.
ALONE: dict[str, Any] = {
    "redis_url": "", "replicas": 0, "api_keys": "", "api_keys_file": "", "api_key": "", "rate_limit": 0, "max_jobs": 0,
    "default_model": "", "model_aliases": "", "results": "redis", "result_links": "proxy",
}  # fmt: skip


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "demo",
        "Try the whole service: start it, request one image as a client would, save it, stop.",
        "The queue's data goes into a temporary folder, and the port is a free one.\n\n"
        "examples:\n  fluid demo 'a red apple, 3d style'\n  fluid demo 'a sleeping cat' --out cat.png --seed 7",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what the image shows")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo.png"),
        help="file to write, .png, .webp or .jpg (default: out/demo.png)",
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same image (default: random)")
    add_model_flags(parser)
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    began = time.monotonic()
    check_output(args.out)
    options = {"output_format": format_from_name(args.out)} | ({} if args.seed is None else {"seed": args.seed})
    with _temporary_folder() as folder:
        own = replace(settings, port=free_port(), host="127.0.0.1", data_dir=folder, log_level="warning", **ALONE)
        with _running_service(own, began) as client:
            started_s = time.monotonic() - began
            sent = time.monotonic()
            [image] = client.generate(args.prompt, **options)
            request_s = time.monotonic() - sent
            path = image.save(args.out)
    _report(path, args.prompt, image, started_s, request_s)


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="fluid-demo-")
    except OSError as error:
        raise ConfigError(f"No folder for temporary files can be written ({error}): set TMPDIR to one.") from error


def free_port() -> int:
    """Choose a port of 127.0.0.1 that nobody listens on.

    It lies below the range from which the kernel takes the ports of outgoing connections (Linux: 32768 and up). One of
    that range may be given to another process's connection, or to its next server, while the service restarts.
    """
    for _ in range(100):
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ConfigError(
        f"No free port of 127.0.0.1 was found from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}: is this machine's network "
        "up?"
    )


@contextmanager
def _running_service(settings: Settings, began: float) -> Iterator[FluidClient]:
    """Run `fluid serve` in a child process, wait until it is ready, and stop it at the end."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | settings.to_env()
    service = subprocesses.spawn([sys.executable, "-m", "server.cli", "serve", "--quiet"], env=env)
    try:
        with FluidClient(settings.base_url, timeout_s=settings.request_timeout_s, use_proxy=False) as client:
            _wait_until_ready(client, service, began)
            yield client
    finally:
        subprocesses.stop(service, grace_s=settings.drain_s + 15)


def _wait_until_ready(client: FluidClient, service: "Popen[bytes]", began: float) -> None:
    with Status("service") as status:
        while True:
            is_ready, reason = client.ready()
            if is_ready:
                status.update("ready")
                return
            if service.poll() is not None:
                raise ServiceError(f"The service exited with status {service.returncode} while starting; see above.")
            if time.monotonic() - began > START_TIMEOUT_S:
                raise ServiceError(f"The service is not ready after {START_TIMEOUT_S:g} s: {reason}.")
            status.update(reason)
            time.sleep(0.2)


def _report(path: Path, prompt: str, image: GeneratedImage, started_s: float, request_s: float) -> None:
    m = image.metrics
    rest = max(0.0, request_s - m["queue_time"] - m["predict_time"] - m["encode_time"])
    rows = [
        ("start-up", started_s),
        ("queue", m["queue_time"]),
        ("inference", m["predict_time"]),
        ("encode", m["encode_time"]),
        ("HTTP and the rest", rest),
        ("whole request", request_s),
        ("total", started_s + request_s),
    ]
    print(f"image: {path}, {prompt!r} with seed {image.seed}; the same prompt and seed give the same image again\n")
    for name, seconds in rows:
        print(f"  {name:<18} {seconds:8.3f} s")
    fluid = "fluid" if shutil.which("fluid") else os.path.relpath(Path(sys.executable).with_name("fluid"))
    print(f"\n  Next: `{fluid} serve`, then open http://127.0.0.1:8000/ in a browser;")
    print(f"        `{fluid} generate --help` for images without a server.\n")
