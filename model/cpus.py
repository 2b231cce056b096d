"""How many CPU cores this process may keep busy: its affinity, limited by the quotas of its control groups."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """Number of cores that this process may keep busy. `root` is the folder that holds proc and sys.

    torch ignores quotas: with a thread per core of a 64-core host under a quota of 2, every step is throttled.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([allowed, *(max(1, round(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota, in cores, of each control group that limits this process and can be read."""
    groups = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root):
        if not controllers:  # version 2
            for folder in _upwards(groups, path):
                yield from _quota((folder / "cpu.max",))
        elif "cpu" in controllers:  # version 1
            for mount in {"cpu", "cpu,cpuacct", "cpuacct,cpu", ",".join(controllers)}:
                for folder in _upwards(groups / mount, path):
                    yield from _quota((folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))


def _memberships(root: Path) -> Iterator[tuple[list[str], PurePosixPath]]:
    """Yield the controllers and the path of each control group of this process, and the root of each hierarchy.

    In a container without a namespace of its own for them, the paths are those of the host and do not exist.
    """
    yield [], PurePosixPath("/")
    yield ["cpu"], PurePosixPath("/")
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        yield [name for name in controllers.split(",") if name], PurePosixPath(path or "/")


def _upwards(mount: Path, path: PurePosixPath) -> Iterator[Path]:
    for each in (path, *path.parents):
        yield mount / str(each).lstrip("/")


def _quota(files: tuple[Path, ...]) -> Iterator[float]:
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        if quota != "max" and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return
