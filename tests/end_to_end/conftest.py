"""`fluid serve` as a user starts it: embedded Valkey, gateway, worker and the shipped checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.cli.demo import free_port
from server.client import FluidClient

START_S = 180.0  # a first import of torch on a cold machine takes most of a minute


@contextmanager
def serving(data_dir: Path, *flags: str, **settings: str) -> Iterator[str]:
    """Base URL of a service that is ready to draw; stopped, and its exit code checked, at the end."""
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | settings
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--data-dir", str(data_dir), *flags]
    process = subprocess.Popen(command, env=env)
    url = f"http://127.0.0.1:{port}"
    try:
        with FluidClient(url) as client:
            client.wait_ready(timeout_s=START_S)
        yield url
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped checkpoint behind a running service."""
    with serving(tmp_path_factory.mktemp("live")) as url:
        yield url
