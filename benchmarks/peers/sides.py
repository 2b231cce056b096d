"""One side of the comparison: a server's processes, started, restarted where the server itself does not, stopped."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from subprocess import Popen
from typing import Any

from benchmarks.peers.processes import MARK, family, kill_all
from benchmarks.peers.servers.work import PATH, PID_FILE, ROWS
from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import EmbeddedValkey
from server.worker.engine.fake import FAKE_ENGINE

ROOT = Path(__file__).parent.parent.parent
SERVERS = "benchmarks.peers.servers"
START_S = 180.0
STOP_S = 3.0  # nothing that is still being generated is wanted
RESTART_S = 0.05  # how soon a process manager notices that a process exited
MOST_RESTARTS = 3
SPINS = "10000"  # as the Makefile has it: torch's threads that spin for longer stop all others on a shared machine
NAMES = {
    "by_hand": "FastAPI by hand",
    "litserve": "LitServe",
    "ray": "Ray Serve",
    "bentoml": "BentoML",
    "arq": "FastAPI + arq",
    "ours": "Fluid Serve",
}
PEERS = tuple(name for name in NAMES if name != "ours")


def fake(step_ms: float) -> dict[str, str]:
    """Return the settings of an engine whose step takes a fixed time."""
    return {"FLUID_ENGINE": FAKE_ENGINE, "FLUID_FAKE_STEP_MS": str(step_ms)}


def shipped(checkpoint: str) -> dict[str, str]:
    """Return the settings of an engine with a checkpoint of the model."""
    return {"FLUID_CHECKPOINT": checkpoint, "FLUID_DEVICE": "cpu"}


@dataclass
class Side:
    """A running server. `roots` are the processes started here; others are theirs."""

    name: str
    port: int
    folder: Path
    mark: str
    commands: list[list[str]]
    env: dict[str, str]
    roots: list[Popen[bytes]] = field(default_factory=list)
    valkey: EmbeddedValkey | None = None
    restarts: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.roots = [self._spawn(command) for command in self.commands]
        threading.Thread(target=self._keep_running, daemon=True).start()

    def stop(self) -> None:
        """Ask the processes to stop, and kill what is left of them."""
        self._stopping.set()
        pids = self.pids()
        for root in self.roots:
            subprocesses.stop(root, grace_s=STOP_S)
        kill_all(lambda: (pids | self.pids()) - self._valkey_pids())

    def pids(self) -> set[int]:
        """Return the ids of all processes of this side."""
        roots = {root.pid for root in self.roots if root.poll() is None}
        return family(roots | self._valkey_pids(), self.mark)

    def engine_pid(self) -> int:
        """Return the id of the process that holds the engine."""
        if self.name != "ours":
            return int((self.folder / "pid").read_text())
        for pid in self.pids():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"worker" in words:
                return pid
        raise RuntimeError("The worker of Fluid Serve is not running.")

    def log(self) -> str:
        """Return the end of what the processes wrote."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def _valkey_pids(self) -> set[int]:
        return {self.valkey.process.pid} if self.valkey is not None and self.valkey.process is not None else set()

    def _spawn(self, command: list[str]) -> Popen[bytes]:
        """Start a command that dies with this process and writes into the log."""
        shell = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(self.folder / "log")]
        return subprocesses.spawn([*shell, *command], env=self.env)

    def _keep_running(self) -> None:
        """Start a root again as soon as it exits, as systemd or Docker would."""
        while not self._stopping.wait(RESTART_S):
            for i, root in enumerate(self.roots):
                if root.poll() is not None and not self._stopping.is_set():
                    self.restarts += 1
                    self.roots[i] = self._spawn(self.commands[i])


@contextmanager
def running(name: str, engine: dict[str, str], python: Path, rows: int = ROWS) -> Iterator[Side]:
    """Start a side with the engine's settings, yield it once it has generated an image, and stop it at the end.

    `python` is the interpreter of the peers' environment; ours runs in this one.

    Raises:
        RuntimeError: the side did not start; the message has the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as path:
        side = _side(name, Path(path), engine | {"FLUID_MAX_ROWS": str(rows)}, python)
        if name == "arq":
            side.valkey = EmbeddedValkey(side.folder / "valkey")
            side.valkey.start()
        try:
            side.start()
            await_image(side, START_S)
            yield side
        finally:
            side.stop()
            if side.valkey is not None:
                side.valkey.close()


def _side(name: str, folder: Path, engine: dict[str, str], python: Path) -> Side:
    port, mark = free_port(), uuid.uuid4().hex
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLUID_")} | engine
    env |= {MARK: mark, PID_FILE: str(folder / "pid")}
    env.setdefault("GOMP_SPINCOUNT", SPINS)
    if name == "ours":
        env["FLUID_LOG_LEVEL"] = "warning"
    else:
        env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PYTHONUNBUFFERED": "1"}
        env |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder), **_ray(folder)}
    return Side(name, port, folder, mark, COMMANDS[name](python, port, folder), env)


def _ray(folder: Path) -> dict[str, str]:
    """Return the settings of Ray Serve's documentation for high throughput; HAProxy's files go into the folder."""
    # Short names: Ray puts an id of 56 characters between, and the path of a socket has at most 107.
    files = {"CONFIG_FILE_LOC": "cfg", "SOCKET_PATH": "a", "METRICS_SOCKET_PATH": "m", "SERVER_STATE_BASE": "state",
             "SERVER_STATE_FILE": "state/file"}  # fmt: skip
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()},
    }


COMMANDS: dict[str, Callable[[Path, int, Path], list[list[str]]]] = {
    "by_hand": lambda python, port, folder: [[str(python), "-m", f"{SERVERS}.by_hand", str(port)]],
    "litserve": lambda python, port, folder: [[str(python), "-m", f"{SERVERS}.litserve_app", str(port)]],
    "ray": lambda python, port, folder: [[str(python), "-m", f"{SERVERS}.ray_app", str(port), str(folder / "ray")]],
    "bentoml": lambda python, port, folder: [
        [
            str(python),
            "-m",
            "bentoml",
            "serve",
            f"{SERVERS}.bento_app:Gateway",
            *("--working-dir", str(ROOT)),
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
        ]
    ],
    "arq": lambda python, port, folder: [
        [str(python), "-m", f"{SERVERS}.arq_gateway", str(port), str(folder / "valkey" / "valkey.sock")],
        [str(python), "-m", f"{SERVERS}.arq_worker", str(folder / "valkey" / "valkey.sock")],
    ],
    "ours": lambda python, port, folder: [
        [sys.executable, "-m", "server.cli", "serve", "--quiet", "--port", str(port), "--data-dir", str(folder)]
    ],
}


def fetch(port: int, body: dict[str, Any], timeout_s: float = 60.0) -> bytes:
    """Generate one image. Raises OSError or HTTPException: no image came."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Accept": "image/png"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as response:
        data: bytes = response.read()
    return data


def await_image(side: Side, limit_s: float) -> None:
    """Ask for the smallest image until it comes.

    Raises:
        RuntimeError: none came in time, or the request was refused; the message has the end of the side's log.
    """
    end = time.monotonic() + limit_s
    while True:
        try:
            left = max(1.0, end - time.monotonic())
            fetch(side.port, {"prompt": "a red apple", "seed": 1, "num_inference_steps": 1}, timeout_s=left)
            return
        except (OSError, HTTPException) as error:  # urllib's HTTPError is an OSError
            refused = isinstance(error, urllib.error.HTTPError) and error.code in (400, 422)
            if refused or time.monotonic() > end or side.restarts > MOST_RESTARTS:
                raise RuntimeError(f"{NAMES[side.name]} does not serve ({error}):\n{side.log()}") from error
            time.sleep(0.1)
