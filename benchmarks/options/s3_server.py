"""A server of S3's protocol: moto's, in a virtual environment of its own, because its packages need older versions."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from server.cli.demo import free_port

REQUIREMENTS = ("moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5")
INSTALL_S, START_S = 600, 60
REGION = {"AWS_REGION": "us-east-1"}


class NoServer(RuntimeError):
    """moto cannot be installed, or does not start."""


def moto_server() -> Path:
    """The program; the environment is made once, in the user's cache folder. Raises NoServer where it cannot be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = " ".join(REQUIREMENTS) + sys.version
    folder = base / "fluid-serve" / f"test-s3-{hashlib.sha256(pins.encode()).hexdigest()[:16]}"
    if not (folder / "complete").exists():
        try:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=INSTALL_S)
            install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS]
            subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_S)
            (folder / "complete").touch()
        except (OSError, subprocess.SubprocessError) as error:
            raise NoServer(f"moto cannot be installed into {folder}: {error}") from error
    return folder / "bin" / "moto_server"


class Relay:
    """A TCP port in front of another one, which can refuse for a while: the bucket behind it keeps its objects."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    def start(self) -> None:
        self._listener = listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections, and break those that are open."""
        if self._listener is not None:
            self._open.add(self._listener)
            self._listener = None
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[Relay]:
    """A server with one bucket, behind a relay. Raises NoServer."""
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([moto_server(), "-H", "127.0.0.1", "-p", str(port)], **quiet)
    relay = Relay(port)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(port):
            if time.monotonic() > deadline:
                raise NoServer(f"moto's server does not respond after {START_S} s")
            time.sleep(0.05)
        httpx.put(f"http://127.0.0.1:{port}/{bucket}").raise_for_status()
        relay.start()
        yield relay
    finally:
        relay.stop()
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/moto-api/").status_code == 200
    except httpx.TransportError:
        return False
