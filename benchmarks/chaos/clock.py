"""Wall clocks that jump: one file per role holds the offset of its processes' clocks. Monotonic clocks do not jump.

Valkey gets libfaketime. Gateway and worker get a module that Python imports at its start: with libfaketime 0.9.10, as
in Debian 12, `time.sleep` fails (EINVAL) when the monotonic clock is not faked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = (
    "usr/lib/*/faketime/libfaketimeMT.so.1",
    "usr/lib/faketime/libfaketimeMT.so.1",
    "usr/local/lib/faketime/libfaketimeMT.so.1",
)
PYTHON_ROLES = ("gateway", "worker")
FILE_VARIABLE = "CHAOS_CLOCK"
_SHIM = f"""
import os, time

def _shift(real, path, kept={{"offset": 0.0, "until": 0.0}}):
    def shifted():
        if time.monotonic() > kept["until"]:
            with open(path) as file:
                kept.update(offset=float(file.read()), until=time.monotonic() + 0.5)
        return real() + kept["offset"]
    return shifted

time.time = _shift(time.time, os.environ["{FILE_VARIABLE}"])
"""


def find_library() -> Path | None:
    """Return libfaketime for programs with threads; None where it is not installed."""
    return next((path for pattern in LIBRARIES for path in sorted(Path("/").glob(pattern))), None)


class Clocks:
    """The offsets of all roles, in seconds; they start at zero. Without a library Valkey's clock is the true one."""

    def __init__(self, folder: Path, library: Path | None) -> None:
        self.offsets = dict.fromkeys((*PYTHON_ROLES, "valkey") if library else PYTHON_ROLES, 0.0)
        self._folder, self._library = folder, library
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(_SHIM)
        for role in self.offsets:
            self.set(role, 0.0)

    def env(self, role: str) -> Mapping[str, str]:
        """Return what a process needs in its environment to follow the clock of its role within a second."""
        if role not in self.offsets:
            return {}
        if role in PYTHON_ROLES:
            return {"PYTHONPATH": str(self._folder), FILE_VARIABLE: str(self._folder / role)}
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
