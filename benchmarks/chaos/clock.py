"""Wall clocks that jump, by libfaketime: one file per role holds the offset of its processes' clocks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)
ROLES = ("gateway", "worker", "valkey")


def find_library() -> Path | None:
    """Return libfaketime for programs with threads; None where it is not installed."""
    return next((path for pattern in LIBRARIES for path in sorted(Path("/").glob(pattern[1:]))), None)


class Clocks:
    """The offsets of all roles, in seconds; they start at zero. Monotonic clocks are left alone, as in life."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.offsets = dict.fromkeys(ROLES, 0.0)
        self._folder, self._library = folder, library
        folder.mkdir(parents=True, exist_ok=True)
        for role in ROLES:
            self.set(role, 0.0)

    def env(self, role: str) -> Mapping[str, str]:
        """Return what a process needs in its environment to follow the clock of its role within a second."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._folder / role),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, role: str, offset_s: float) -> None:
        """Let the clock of a role jump, to `offset_s` from the true time."""
        self.offsets[role] = offset_s
        scratch = self._folder / f"{role}.new"
        scratch.write_text(f"{offset_s:+.1f}\n")
        os.replace(scratch, self._folder / role)
