"""What the chaos run lets fail around the service: a fault that does nothing would prove nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos.cast import Cast
from benchmarks.chaos.clock import Clocks, find_library
from benchmarks.chaos.disk import SmallDisk, mount_trouble
from benchmarks.chaos.proxy import Proxy
from benchmarks.chaos.redis_pair import RedisPair
from server.launcher import subprocesses
from server.worker.watchdog import HUNG_STATUS
from tests.server.harness import until


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """Return a proxy to a server that answers each message with itself."""
    script = (
        "import asyncio\n"
        "async def serve(reader, writer):\n"
        "    while data := await reader.read(100): writer.write(data)\n"
        "    writer.close()\n"
        "async def main():\n"
        "    server = await asyncio.start_server(serve, '127.0.0.1', 0)\n"
        "    print(server.sockets[0].getsockname()[1], flush=True)\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        with Proxy(int(process.stdout.readline())) as proxy:
            yield proxy
    finally:
        process.kill()
        process.communicate()


def _connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=60)


def _echoed(connection: socket.socket, seconds: float = 60.0) -> bool:
    connection.settimeout(seconds)
    connection.sendall(b"x")
    try:
        return connection.recv(1) == b"x"
    except TimeoutError:
        return False


def test_a_silent_connection_stays_open_and_new_ones_work(echo: Proxy) -> None:
    with _connect(echo) as old, _connect(echo) as new:
        assert _echoed(old)
        assert echo.silence() >= 1 and echo.forwarding <= 1
        assert not _echoed(old, 0.2)
    with _connect(echo) as new:
        assert _echoed(new)
    assert echo.silence(0.0, Random(1)) == 0


def test_open_connections_stay_where_they_are_when_the_address_moves(echo: Proxy) -> None:
    """This is what hid the demoted primary: clients kept their connections."""
    with socket.create_server(("127.0.0.1", 0)) as other, _connect(echo) as old:
        assert _echoed(old)
        echo.switch(other.getsockname()[1])
        assert _echoed(old)
        with _connect(echo):
            other.settimeout(60)
            other.accept()[0].close()


@pytest.mark.slow
def test_a_promoted_replica_lacks_the_last_second(tmp_path: Path) -> None:
    with RedisPair(tmp_path) as pair:
        pair.primary.command("SET", "kept", "1")
        pair.wait_until_synced()
        former = pair.primary
        pair.lag()
        pair.primary.command("SET", "lost", "1")
        pair.promote()
        assert (pair.primary.command("EXISTS", "kept"), pair.primary.command("EXISTS", "lost")) == (1, 0)
        pair.wait_until_synced()
        assert former.command("EXISTS", "lost") == 0  # the former primary has forgotten it too


def test_the_clock_of_a_python_process_jumps_and_its_sleeps_do_not(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path, None)
    clocks.set("worker", 3600.0)
    script = "import time; a = time.monotonic(); time.sleep(0.1); print(time.time(), time.monotonic() - a)"
    env = os.environ | clocks.env("worker")
    shown = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    now, slept_s = map(float, shown.split())
    assert now > time.time() + 3000 and slept_s < 60
    assert clocks.env("valkey") == {}


@pytest.mark.slow
@pytest.mark.skipif(find_library() is None, reason="needs libfaketime (Debian: apt-get install faketime)")
def test_the_clock_of_valkey_jumps(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clocks", find_library())
    with RedisPair(tmp_path, clocks.env("valkey")) as pair:

        def ahead_s() -> float:
            told = pair.primary.command("TIME")
            assert isinstance(told, list | tuple)
            return float(told[0]) - time.time()

        assert abs(ahead_s()) < 30
        clocks.set("valkey", 3600.0)
        assert until(lambda: ahead_s() > 3000, what="the jump")


@pytest.mark.skipif(mount_trouble() is not None, reason="needs root, to mount a tmpfs")
def test_a_small_disk_is_full_until_it_is_freed(tmp_path: Path) -> None:
    with SmallDisk(tmp_path / "disk") as disk:
        disk.fill()
        with pytest.raises(OSError):
            (disk.folder / "file").write_bytes(bytes(1 << 16))
        disk.free()
        (disk.folder / "file").write_bytes(bytes(1 << 16))
    assert not (tmp_path / "disk" / "file").exists()


@pytest.mark.parametrize(
    ("status", "struck", "noted"),
    [(1, False, True), (0, False, True), (HUNG_STATUS, False, False), (-9, False, False), (1, True, False)],
)
def test_only_ends_that_nothing_asked_for_are_noted(tmp_path: Path, status: int, struck: bool, noted: bool) -> None:
    """A worker may end by a fault, or by a prompt: [kill] and [hang]."""
    cast = Cast(tmp_path, 2.0, Random(1))
    process = subprocesses.spawn([sys.executable, "-c", "import time; time.sleep(60)"], quiet=True)
    if struck:
        cast.strike("worker", process, signal.SIGKILL)
    process.kill()
    process.wait()
    process.returncode = status
    cast._note(process, "worker")
    assert bool(cast.unasked) == noted
    if not struck:
        cast._note(process, "gateway")
        assert len(cast.unasked) == 1 + noted


def test_modes_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chaos._modes("failover,reload") == ["failover", "reload"]
    with pytest.raises(ArgumentTypeError, match="unknown: flood"):
        chaos._modes("flood")
    monkeypatch.setattr(chaos, "find_library", lambda: None)
    monkeypatch.setattr(chaos, "mount_trouble", lambda: "permission denied")
    found, skipped = chaos.available(chaos._modes("all"))
    assert found == ["failover", "half-open", "reload", "clock"] and len(skipped) == 2
