"""`ObjectStore`: writes, reads and deletes files in a bucket or a folder, by obstore.

A failure is `StorageUnavailable` with a reason that may be shown to callers: no address, no credentials. The text of
the library's error may hold an access key, and is in no message and no log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from server.addresses import results_folder
from server.errors import ConfigError, StorageUnavailable
from server.storage import object_names
from server.storage.backends import Place, entries_of, older, open_backend, remove_emptied, remove_files, sync_file
from server.storage.reasons import LOST_FOLDER, reason_of

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

T = TypeVar("T")
IN_REDIS = "redis"  #: the value of FLUID_RESULTS without a store
TIMEOUT_S = 10.0  #: of one call; a mount that hangs never returns
PROBE_BYTES = 4096  #: a nearly full disk still has room for less
DELETED_AT_ONCE = 1000  #: as many as one request of S3 deletes
IN_FOLDER_AT_ONCE = 50  #: as many as a share that is slow deletes, or tells the age of, within TIMEOUT_S


def open_store(url: str, namespace: str) -> ObjectStore | None:
    """The store of FLUID_RESULTS; None where images lie in Redis.

    Raises:
        ConfigError: it needs the extra `storage`.
    """
    if url == IN_REDIS:
        return None
    if find_spec("obstore") is None:
        raise ConfigError("FLUID_RESULTS needs obstore: pip install '.[storage]' in a clone, or set it to redis.")
    return ObjectStore(url, namespace)


def check_links(url: str, links: str) -> None:
    """Raise ConfigError if FLUID_RESULT_LINKS asks for links that FLUID_RESULTS cannot give."""
    if links == "presigned" and not url.startswith("s3://"):
        raise ConfigError("FLUID_RESULT_LINKS=presigned needs FLUID_RESULTS=s3://bucket/prefix; or set it to proxy.")


class ObjectStore:
    """The objects of one service. Credentials come from AWS_* variables only."""

    def __init__(self, url: str, namespace: str) -> None:
        """`url`: s3://bucket/prefix or file:///folder. Nothing is reached yet."""
        self.url = url
        self.namespace = namespace
        self.trouble = ""  #: how a sentence that begins with "The store of finished images" ends; "" if it works
        self.on_trouble: Callable[[], None] = lambda: None  #: called by the first call that fails after one that worked
        self._root = object_names.root_of(namespace)
        self._folder = results_folder(url)
        self._place = None if self._folder is None else Place(self._folder)
        self.at_once = DELETED_AT_ONCE if self._folder is None else IN_FOLDER_AT_ONCE  #: objects that one call deletes
        self._opened: LocalStore | S3Store | None = None
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="results")
        self._probe_bytes = PROBE_BYTES

    async def put(self, name: str, data: bytes) -> None:
        """Store an object whole or not at all; when this returns, it is on disk.

        Raises:
            StorageUnavailable: it is not known to be stored. Safe to repeat.
        """
        try:
            await self._call(self._put(name, data))
        except StorageUnavailable:
            self._probe_bytes = max(self._probe_bytes, len(data))
            raise
        self.trouble = ""
        if len(data) >= self._probe_bytes:
            self._probe_bytes = PROBE_BYTES

    async def _put(self, name: str, data: bytes) -> None:
        import obstore

        if self._folder is None:
            _, dot, suffix = name.rpartition("/")[2].rpartition(".")
            kind = f"image/{suffix}" if dot else "application/octet-stream"
            about = {"Content-Type": kind}
            await obstore.put_async(await self._store(), name, data, attributes=about, use_multipart=False)
        else:
            await obstore.put_async(await self._store(), name, data)
            await self._in_thread(sync_file, self._folder, name)

    async def get(self, name: str) -> bytes | None:
        """Read an object; None if there is none."""
        return await self._call(self._get(name))

    async def _get(self, name: str) -> bytes | None:
        import obstore

        try:
            found = await obstore.get_async(await self._store(), name)
            return bytes(await found.bytes_async())
        except FileNotFoundError as error:
            await self._require_place(error)
            return None

    async def get_range(self, name: str, start: int, end: int) -> bytes | None:
        """Read the bytes from `start` to before `end`, of which there must be some; None if there is no such object."""
        return await self._call(self._get_range(name, start, end))

    async def _get_range(self, name: str, start: int, end: int) -> bytes | None:
        import obstore

        try:
            return bytes(await obstore.get_range_async(await self._store(), name, start=start, end=end))
        except FileNotFoundError as error:
            await self._require_place(error)
            return None

    async def copy(self, name: str, new_name: str) -> bool:
        """Store an object under a second name; False if there is none of the first."""
        return await self._call(self._copy(name, new_name))

    async def _copy(self, name: str, new_name: str) -> bool:
        import obstore

        try:
            await obstore.copy_async(await self._store(), name, new_name)
        except FileNotFoundError as error:
            await self._require_place(error)
            return False
        if self._folder is not None:
            await self._in_thread(sync_file, self._folder, new_name)
        return True

    async def link(self, name: str, seconds: float) -> str:
        """A link by which anyone can read the object of a bucket for a while: at most a week, as S3 allows."""
        return await self._call(self._link(name, timedelta(seconds=min(seconds, 7 * 86400))))

    async def _link(self, name: str, duration: timedelta) -> str:
        import obstore
        from obstore.store import S3Store

        store = await self._store()
        assert isinstance(store, S3Store)
        return await obstore.sign_async(store, "GET", name, duration)

    async def exists(self, name: str) -> bool:
        return await self._call(self._exists(name))

    async def _exists(self, name: str) -> bool:
        import obstore

        try:
            await obstore.head_async(await self._store(), name)
        except FileNotFoundError as error:
            await self._require_place(error)
            return False
        return True

    async def delete(self, *names: str) -> None:
        """Delete objects; those that are gone already do not matter."""
        await self._call(self._delete(names))

    async def _delete(self, names: tuple[str, ...]) -> None:
        import obstore

        for name in names:
            try:
                await obstore.delete_async(await self._store(), name)
            except FileNotFoundError as error:
                await self._require_place(error)

    async def delete_many(self, names: Sequence[str]) -> None:
        """Delete up to `at_once` objects by one call."""
        await self._call(self._delete_many(names))

    async def expired(self, now: float) -> list[str]:
        """The hours of objects, as prefixes of their names, that have passed. One listing, which also shows whether the
        store answers."""
        return await self._call(self._expired(now))

    async def _expired(self, now: float) -> list[str]:
        import obstore

        try:
            found = await obstore.list_with_delimiter_async(await self._store(), self._root)
        except FileNotFoundError as error:
            await self._require_place(error)
            return []
        hours = found["common_prefixes"]
        return sorted(hour for hour in hours if (ends := object_names.expires_at(hour)) is not None and ends <= now)

    async def delete_hour(self, hour: str, until: float = inf) -> int:
        """Delete the objects of an hour that `expired` returned, all or as many as before `until` on the monotonic
        clock, and return how many. Several processes may do it."""
        deleted = 0
        while batch := await self._call(self._first_of(hour)):
            if time.monotonic() >= until:
                return deleted
            await self._call(self._delete_many(batch))
            deleted += len(batch)
        if self._folder is not None:
            await self._call(self._in_thread(remove_emptied, self._folder / hour))
        return deleted

    async def old_uploads(self, before: float) -> AsyncIterator[list[str]]:
        """Yield the names of a folder's uploads that were last written before a time; none of a bucket, which has its
        own rule for them. With what killed writers left."""
        if self._folder is None or not await self._call(self._place_is_there()):
            return
        uploads = object_names.uploads_of(self.namespace)
        entries = await self._call(self._in_thread(entries_of, self._folder / uploads))
        while (page := await self._call(self._in_thread(older, entries, before, self.at_once))) is not None:
            yield [f"{uploads}/{name}" for name in page]

    async def remove_uploads(self, names: list[str]) -> None:
        """Delete some of what `old_uploads` yielded."""
        if self._folder is not None:
            await self._call(self._in_thread(remove_files, self._folder, names))

    async def _first_of(self, hour: str) -> list[str]:
        import obstore

        async for page in obstore.list(await self._store(), hour, chunk_size=self.at_once):
            return [each["path"] for each in page]
        return []

    async def _delete_many(self, names: Sequence[str]) -> None:
        import obstore

        try:
            await obstore.delete_async(await self._store(), list(names))
        except FileNotFoundError:  # another process deleted some of them
            await self._delete(tuple(names))

    async def probe(self, who: str) -> None:
        """Write and delete an object, as large as the one that failed; note the trouble, or that there is none."""
        name = f"{self._root}/probe/{who}"
        await self.put(name, bytes(self._probe_bytes))
        await self.delete(name)

    # --- failures -------------------------------------------------------------------------------------

    async def _store(self) -> LocalStore | S3Store:
        """The library's store, opened when it is first needed: a folder may be mounted late, or be gone for a while."""
        if not await self._place_is_there():
            raise StorageUnavailable(LOST_FOLDER)  # the library would make a folder of its name
        if self._opened is None:
            self._opened = open_backend(self.url, self._folder, TIMEOUT_S)
        return self._opened

    async def _place_is_there(self) -> bool:
        return self._place is None or await self._in_thread(self._place.is_there)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call of the file system, which may hang for ever on a dead mount, where it holds up nothing else."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    async def _require_place(self, error: FileNotFoundError) -> None:
        """Tell a missing object from a missing bucket or folder."""
        if "NoSuchBucket" in str(error):
            raise error
        if not await self._place_is_there():
            raise StorageUnavailable(LOST_FOLDER) from error

    async def _call(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await work
        except StorageUnavailable as error:
            self._note(error.reason)
            raise
        except Exception as error:  # the library's errors have builtin classes too
            self._note(reason_of(error, in_folder=self._folder is not None, timeout_s=TIMEOUT_S))
            raise StorageUnavailable(self.trouble) from None  # the cause may quote an access key

    def _note(self, trouble: str) -> None:
        worked, self.trouble = not self.trouble, trouble
        if worked:
            self.on_trouble()
