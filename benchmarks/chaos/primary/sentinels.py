"""A primary, two replicas and three Sentinels, each a real process; a node that is lost comes back empty."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import redis

from benchmarks.chaos.redis_pair import Node
from server.cli.demo import free_port
from server.launcher import subprocesses
from server.launcher.embedded_valkey import find_binary

SERVICE = "main"
#: Sentinel pings every second. With 1000 it took live primaries for dead a second after it had appointed them, in 7 of
#: 20 failovers, and the one that it deposed went on accepting jobs with the replica that still followed it.
DOWN_AFTER_MS = 4000
WAIT_S = 90.0


class ReplicatedNode(Node):
    """Accepts writes only while a replica keeps up with it.

    One that comes back empty is a replica from its first moment: as a primary it would be found by replicas that do not
    know of the failover yet. They would copy that it is empty, and confirm what it accepts until Sentinel demotes it.
    """

    primary_port = 0  #: of which node it is a replica; 0: it is a primary

    def _options(self) -> list[str]:
        options = [*super()._options(), "--min-replicas-to-write", "1", "--min-replicas-max-lag", "10",
                   "--replica-serve-stale-data", "no"]  # fmt: skip
        return [*options, "--replicaof", f"127.0.0.1 {self.primary_port}"] if self.primary_port else options

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_suffix(".log")  # it outlives the data


class Trio:
    """Context manager. `url` leads to the primary, whichever that is."""

    def __init__(self, folder: Path, down_after_ms: int = DOWN_AFTER_MS) -> None:
        self._folder, self._down_after_ms = folder, down_after_ms
        self.nodes = [ReplicatedNode(folder / f"node{number}") for number in range(3)]
        for node in self.nodes[1:]:
            node.primary_port = self.nodes[0].port
        self.sentinels = [free_port() for _ in range(3)]
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{SERVICE}"

    def __enter__(self) -> Trio:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            first, *others = self.nodes
            self._wait(lambda: _synced(first, others), "the replicas")
            for port in self.sentinels:
                process = self._start_sentinel(port, first)
                stack.callback(subprocesses.stop, process, grace_s=10)
            self.wait_until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_sentinel(self, port: int, primary: Node) -> Popen[bytes]:
        file = self._folder / f"sentinel{port}.conf"
        lines = (
            f"port {port}", "bind 127.0.0.1", f"dir {self._folder}", f"logfile {self._folder}/sentinel{port}.log",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}",
            f"sentinel failover-timeout {SERVICE} 9000", f"sentinel parallel-syncs {SERVICE} 2",
        )  # fmt: skip
        file.write_text("\n".join(lines) + "\n")
        return subprocesses.spawn([find_binary(), str(file), "--sentinel"], quiet=True)

    def primary(self) -> ReplicatedNode:
        """Return the node that most Sentinels name.

        Raises:
            LookupError: they do not agree.
        """
        named = [_ask(port, "GET-MASTER-ADDR-BY-NAME", SERVICE) for port in self.sentinels]
        ports = [int(each[1]) for each in named if isinstance(each, list | tuple)]
        for node in self.nodes:
            if ports.count(node.port) >= 2:
                return node
        raise LookupError(f"the Sentinels name {ports}")

    def lose_primary(self) -> ReplicatedNode:
        """Kill the primary and delete its data; return it."""
        lost = self.primary()
        if lost.process is None:
            raise RuntimeError("the primary has ended already")
        lost.process.kill()
        lost.process.wait()
        shutil.rmtree(lost.data_dir)
        return lost

    def wait_for_failover(self, lost: Node) -> None:
        """Wait until the Sentinels name another primary, which is one."""
        self._wait(lambda: (now := self.primary()) is not lost and _role(now) == "master", "a failover")

    def replace(self, lost: ReplicatedNode) -> None:
        """Start a lost node again, empty, as a replica of the primary."""
        lost.primary_port = self.primary().port
        lost.launch()

    def wait_until_whole(self) -> None:
        """Wait until both replicas have all data, and every Sentinel sees the others and both replicas."""
        self._wait(self._whole, "three nodes and three Sentinels")

    def _whole(self) -> bool:
        primary = self.primary()
        others = [node for node in self.nodes if node is not primary]
        seen = [_live(port, what) for port in self.sentinels for what in ("REPLICAS", "SENTINELS")]
        return _synced(primary, others) and seen == [2] * len(seen)

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if done():
                    return
            except (LookupError, redis.RedisError):  # some of them start, or elect
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {WAIT_S:g} s")
            time.sleep(0.05)


def _ask(port: int, *words: str) -> object:
    try:
        with redis.Redis(port=port, decode_responses=True, socket_timeout=5) as client:
            return client.execute_command("SENTINEL", *words)
    except redis.ConnectionError:  # it starts
        return None


def _live(port: int, what: str) -> int:
    """Return how many replicas, or other Sentinels, a Sentinel knows and reaches."""
    found = _ask(port, what, SERVICE)
    return sum("s_down" not in str(each) for each in found) if isinstance(found, list) else 0


def _role(node: Node) -> object:
    role = node.command("ROLE")
    return role[0] if isinstance(role, list) else None


def _synced(primary: Node, replicas: list[ReplicatedNode]) -> bool:
    whole = primary.command("INFO", "replication")
    parts = [replica.command("INFO", "replication") for replica in replicas]
    assert isinstance(whole, dict)
    return all(
        isinstance(part, dict)
        and part.get("master_link_status") == "up"
        and part.get("master_port") == primary.port
        and part.get("slave_repl_offset", 0) >= whole.get("master_repl_offset", 0) - 10_000  # under load it runs on
        for part in parts
    )
