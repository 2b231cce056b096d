"""A small disk that can be full: a tmpfs, for which one must be root."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

SIZE_MIB = 768  # the append-only file of half an hour fits three times
CHUNK = bytes(1 << 20)


class SmallDisk:
    """A tmpfs of SIZE_MIB, mounted on a folder as a context manager.

    Raises:
        OSError: it cannot be mounted here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip() or "mount failed")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)

    def fill(self) -> None:
        """Leave not a byte."""
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while file.write(CHUNK):
                pass

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


def mount_trouble() -> str | None:
    """Return why no tmpfs can be mounted here; None if one can."""
    try:
        with tempfile.TemporaryDirectory() as folder, SmallDisk(Path(folder) / "disk"):
            return None
    except OSError as error:
        return str(error)
