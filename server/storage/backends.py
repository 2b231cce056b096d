"""What lies under `ObjectStore`: the library's store of a bucket or folder, and what it leaves to us in a folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

#: A name that the library writes under before it renames; it neither lists nor deletes what a killed writer left there.
_PARTIAL = re.compile(r"#\d+$")
RETRIES = 2  #: inside one call; workers repeat the call itself
MARK = ".fluid-serve"  #: a file with a random word, by which the folder is known again after it was mounted anew


class Place:
    """Tells a store's folder from another one of its name: the empty folder below a share that is not mounted any more,
    or one that a write has made in its place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: tuple[int, int] | None = None  # device and number, of the folder that was there at first
        self._mark = b""  # its mark; another process may have made one in the wrong folder

    def is_there(self) -> bool:
        """Return whether the folder is there, and is the one that was. The first one that is seen gets the mark."""
        try:
            found = self._folder.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not S_ISDIR(found.st_mode):
            return False
        same = (found.st_dev, found.st_ino)
        if self._seen is None:
            self._mark = self._read_mark() or self._make_mark()
        elif self._seen != same and not (self._mark and self._mark == self._read_mark()):
            return False
        self._seen = same
        return True

    def _read_mark(self) -> bytes:
        with suppress(OSError):
            return (self._folder / MARK).read_bytes()
        return b""

    def _make_mark(self) -> bytes:
        """Write a mark, unless another process was first; b"" on a share that is read only here."""
        own = self._folder / f"{MARK}-{secrets.token_hex(8)}"
        with suppress(OSError):
            own.write_bytes(secrets.token_hex(16).encode())
            with suppress(FileExistsError):
                os.link(own, self._folder / MARK)
        with suppress(OSError):
            own.unlink()
        return self._read_mark()


def open_backend(url: str, folder: Path | None, timeout_s: float) -> LocalStore | S3Store:
    """Open the library's store of FLUID_RESULTS; a bucket is not reached yet."""
    from obstore import store

    if folder is not None:
        return store.LocalStore(folder)
    return store.S3Store.from_url(
        url,
        client_options={"timeout": f"{timeout_s:g}s", "connect_timeout": "3s", "allow_http": True},
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=timeout_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=500),
                "base": 2,
            },
        },
    )


def sync_file(folder: Path, name: str) -> None:
    """Have the kernel write a file and the folders above it to disk: the library renames it into place, no more."""
    path = folder / name
    for each in (path, *path.parents):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if each == folder:
            return


def remove_emptied(folder: Path) -> None:
    """Remove a folder whose objects have been deleted, and what killed writers left in it."""
    for path, _, names in os.walk(folder, topdown=False):
        remove_files(Path(path), [name for name in names if _PARTIAL.search(name)])
        try:
            os.rmdir(path)
        except OSError:  # not empty: another process is deleting, too
            return


def remove_files(folder: Path, names: list[str]) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).unlink()


def entries_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, in any order; none if there is no such folder."""
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        yield from found


def older(entries: Iterator[os.DirEntry[str]], before: float, at_once: int) -> list[str] | None:
    """Take the next entries, and return the names of files that were last written before a time; None at the end."""
    taken, names = list(islice(entries, at_once)), list[str]()
    for entry in taken:
        with suppress(FileNotFoundError):  # deleted meanwhile
            if entry.is_file() and entry.stat().st_mtime < before:
                names.append(entry.name)
    return names if taken else None
