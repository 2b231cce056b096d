"""Run `fluid serve` as a user does: embedded Valkey, gateway, worker and the shipped checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.cli.demo import free_port
from server.client import FluidClient

START_S = 180.0  # a first import of torch on a cold machine takes most of a minute


@contextmanager
def serving(data_dir: Path, *flags: str, **settings: str) -> Iterator[str]:
    """Start a service and yield its base URL once it is ready; stop it at the end, and check its exit code."""
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser of the module's own: while one is open, no test of this process can run an event loop."""
    from tests.end_to_end.browser import open_browser  # skips the module if playwright is missing

    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the base URL of a running service with the shipped checkpoint."""
    with serving(tmp_path_factory.mktemp("live")) as url:
        yield url
