"""A primary and a replica behind one address, and the failover that loses what the replica had not received."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import redis

from benchmarks.chaos.proxy import Proxy
from server.cli.demo import free_port
from server.launcher.embedded_valkey import EmbeddedValkey

SYNC_S = 30.0


class Node(EmbeddedValkey):
    """A Valkey that also listens on a port of this machine, for its replica."""

    def __init__(self, data_dir: Path, env: Mapping[str, str] | None = None) -> None:
        super().__init__(data_dir)
        self.port = free_port()
        self._env = dict(env or {})

    def _options(self) -> list[str]:
        options = {
            "port": str(self.port), "bind": "127.0.0.1", "repl-diskless-sync-delay": "0", "repl-timeout": "5",
            "repl-ping-replica-period": "1", "auto-aof-rewrite-min-size": "16mb",
        }  # fmt: skip
        return [*super()._options(), *(part for name, value in options.items() for part in (f"--{name}", value))][2:]

    def launch(self) -> None:
        with mock.patch.dict(os.environ, self._env):
            super().launch()

    def command(self, *words: object) -> object:
        with redis.Redis(unix_socket_path=str(self.socket), decode_responses=True, socket_timeout=10) as client:
            return client.execute_command(*words)


class RedisPair:
    """Context manager. `url` leads to the primary, and to the former replica after `promote`."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.primary, self.replica = Node(folder / "a", env), Node(folder / "b", env)
        self.address = Proxy(self.primary.socket)
        self._links = {node: Proxy(node.port) for node in (self.primary, self.replica)}
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return self.address.url

    def __enter__(self) -> RedisPair:
        with ExitStack() as stack:
            for each in (self.primary, self.replica, self.address, *self._links.values()):
                stack.enter_context(each)
            self._follow()
            self.wait_until_synced()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _follow(self) -> None:
        self.replica.command("REPLICAOF", "127.0.0.1", self._links[self.primary].port)

    def wait_until_synced(self) -> None:
        """Wait until the replica has everything that the primary has."""
        deadline = time.monotonic() + SYNC_S
        while not self._synced():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the replica has not caught up within {SYNC_S:g} s")
            time.sleep(0.05)

    def _synced(self) -> bool:
        try:
            primary, replica = self.primary.command("INFO", "replication"), self.replica.command("INFO", "replication")
        except redis.RedisError:  # one of them starts
            return False
        assert isinstance(primary, dict) and isinstance(replica, dict)
        up = replica.get("master_link_status") == "up" and not replica.get("master_sync_in_progress")
        return bool(up and replica.get("slave_repl_offset", 0) >= primary.get("master_repl_offset", 0))

    def ended(self) -> list[Node]:
        """Return the nodes whose processes have ended."""
        return [node for node in (self.primary, self.replica) if node.exited]

    def restart(self, node: Node) -> None:
        """Start a node again that has ended, on its data."""
        node.start()
        if node is self.replica:
            self._follow()

    def node_in(self, folder: Path) -> Node:
        return self.primary if self.primary.data_dir == folder else self.replica

    def lag(self) -> None:
        """From now on, what the primary accepts does not reach the replica."""
        self._links[self.primary].silence()

    def promote(self) -> None:
        """Fail over: the replica takes over the address. Open connections stay with the former primary, which becomes
        its replica and forgets what it accepted in between."""
        self.replica.command("REPLICAOF", "NO", "ONE")
        self.primary, self.replica = self.replica, self.primary
        self.address.switch(self.primary.socket)
        self._follow()
