"""The embedded Valkey: data survives, folders are exclusive, no orphan process."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from server.addresses import parse_redis_url
from server.errors import ConfigError, DataDirInUse
from server.launcher.embedded_valkey import MAX_SOCKET_PATH, EmbeddedValkey, running_url
from server.setting_values import data_folder
from tests.server.harness import alive, until


def write(url: str, value: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.set("key", value)


def read(url: str) -> bytes | None:
    with redis.Redis.from_url(url) as client:
        value = client.get("key")
        assert value is None or isinstance(value, bytes)
        return value


def test_data_survives_a_kill_and_a_restart(tmp_path: Path) -> None:
    """appendfsync always: an acknowledged write must be there after SIGKILL."""
    server = EmbeddedValkey(tmp_path)
    with server:
        write(server.url, "kept")
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        server.start()
        assert read(server.url) == b"kept"
    with EmbeddedValkey(tmp_path) as second:
        assert read(second.url) == b"kept"


@pytest.mark.parametrize("name", ["data", "./a #b?c%20d"])
def test_any_folder_will_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one was looked for twice over, in itself and on a host of its name; so was one with odd characters."""
    monkeypatch.chdir(tmp_path)
    with EmbeddedValkey(data_folder(name)) as server:
        write(parse_redis_url(server.url), "kept")
        assert running_url(data_folder(name)) == server.url
    assert (tmp_path / name / "valkey.log").exists()


def test_a_folder_of_another_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fluid doctor` as another user than that of `fluid serve` ended with a traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="run this as the user of `fluid serve`"):
        running_url(tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert running_url(tmp_path / "file") is None


def test_a_second_instance_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    """Two servers on one append-only file destroy it."""
    with EmbeddedValkey(tmp_path), pytest.raises(DataDirInUse, match=rf"pid {os.getpid()}.*FLUID_DATA_DIR"):
        EmbeddedValkey(tmp_path).start()
    with EmbeddedValkey(tmp_path):
        pass  # free again


def test_a_long_folder_name_gets_a_short_socket(tmp_path: Path) -> None:
    """Unix socket paths end at about 100 bytes; deep home folders are longer."""
    deep = tmp_path / ("d" * MAX_SOCKET_PATH)
    with EmbeddedValkey(deep) as server:
        assert len(str(server.socket)) <= MAX_SOCKET_PATH
        write(server.url, "x")
    assert not server.socket.parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """A SIGKILLed service must not leave a server that holds the folder."""
    program = (
        "import sys, time; from pathlib import Path; from server.launcher.embedded_valkey import EmbeddedValkey\n"
        f"s = EmbeddedValkey(Path({str(tmp_path)!r})); s.start(); print(s.process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(pid), what="the orphan's end")
    with EmbeddedValkey(tmp_path):
        pass


def test_only_its_user_can_read_what_it_keeps(tmp_path: Path) -> None:
    """A folder of mode 0755, made by hand, held prompts and images in a file that everyone could read."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with EmbeddedValkey(folder) as server:
        write(server.url, "a prompt")
        assert folder.stat().st_mode & 0o777 == 0o700
        files = [path for path in folder.rglob("*.aof*") if path.is_file()]
        assert files and not any(path.stat().st_mode & 0o077 for path in files)


def test_a_shared_folder_keeps_its_mode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """FLUID_DATA_DIR=/tmp must not lock everyone else out of it."""
    tmp_path.chmod(0o1777)
    with EmbeddedValkey(tmp_path):
        assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    assert "0700" in caplog.text
    tmp_path.chmod(0o700)


def test_a_full_disk_is_no_error_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have room again: `fluid serve` tries again instead of ending."""
    server = EmbeddedValkey(tmp_path / "data")

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", no_space)
    server.launch()
    assert server.exited and "No space left on device" in server.failure()
    monkeypatch.undo()
    with server:
        write(server.url, "x")
