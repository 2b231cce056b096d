"""How much memory the embedded Valkey may use, and what happens beyond it."""

import os
from pathlib import Path

import pytest
import redis

from server.launcher.embedded_valkey import EmbeddedValkey
from server.launcher.memory import LEAST_BYTES, default_maxmemory, memory_bytes

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"sys/fs/cgroup/memory.max": "max\n"}, MACHINE),
        ({"sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20),
        ({f"{V1}/memory.limit_in_bytes": "2097152\n"}, 2 << 20),
        ({f"{V1}/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "4096\n"}, 4096),
        ({"proc/self/cgroup": "4:cpu,memory:/x\n", f"{V1}/x/memory.limit_in_bytes": "8192\n"}, 8192),
        ({"proc/self/cgroup": "4:cpu:/x\n", "sys/fs/cgroup/x/memory.max": "8192\n"}, MACHINE),
        ({"sys/fs/cgroup/memory.max": "nonsense\n"}, MACHINE),
    ],
)
def test_the_limits_of_containers_are_seen(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    """A Valkey that grows beyond them is ended by the kernel, with no cause shown."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_bytes(tmp_path) == expected
    assert default_maxmemory(tmp_path) == max(LEAST_BYTES, expected // 4)


def test_the_embedded_valkey_refuses_writes_beyond_its_memory(tmp_path: Path) -> None:
    """It had no limit: the kernel ended it, and with it all that waited."""
    with EmbeddedValkey(tmp_path, maxmemory_bytes=8 << 20) as server, redis.Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory*")["maxmemory-policy"] == "noeviction"
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            for number in range(100):
                client.set(str(number), b"x" * (1 << 20))
        assert client.ping() and client.get("0")
