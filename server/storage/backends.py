"""What lies under `ObjectStore`: the library's store of a bucket or folder, and what it leaves to us in a folder."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

RETRIES = 2  #: inside one call; workers repeat the call itself


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


def remove_empty(folder: Path) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(path)
        except OSError:  # not empty: another process is deleting, too
            return
