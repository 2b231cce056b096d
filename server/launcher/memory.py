"""How much memory this machine or container has, and what the embedded Valkey may use of it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: The worker needs most; Valkey needs up to twice its data while it rewrites its append-only file.
VALKEY_SHARE = 0.25
LEAST_BYTES = 64 << 20
ASSUMED_BYTES = 8 << 30


def default_maxmemory(root: Path = Path("/")) -> int:
    """The default of FLUID_VALKEY_MIB in bytes. `root` is the folder that holds proc and sys."""
    return max(LEAST_BYTES, int(memory_bytes(root) * VALKEY_SHARE))


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, limited by its control groups."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # a system that does not tell
        machine = ASSUMED_BYTES
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Yield the limit of each control group of this process, and of those around it, that can be read.

    In a container without a namespace of its own for them, the paths are those of the host and do not exist.
    """
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", "0:memory:/", *lines]:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        for each in (PurePosixPath(path or "/"), *PurePosixPath(path or "/").parents):
            try:
                text = (mount / str(each).lstrip("/") / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal() and int(text) > 0:  # not "max"; version 1 writes a huge number, which limits nothing
                yield int(text)
