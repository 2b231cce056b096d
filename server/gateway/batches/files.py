"""Uploaded files, the input of batches and edits: records in Redis with an expiry, listed per owner; the content lies
beside them, or in the store of FLUID_RESULTS."""

import builtins
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

from redis.exceptions import RedisError

from server.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotReplicated,
    RateLimited,
    StorageUnavailable,
    UnknownFile,
    UnreadableRecord,
)
from server.errors.limits import MIB
from server.gateway.pagination import ids_after, read_listed
from server.queue.job_queue import JobQueue
from server.queue.redis_client import read_hash
from server.records import UNREADABLE, finite
from server.storage.object_names import upload_name
from server.storage.object_store import ObjectStore

#: 50,000 lines, each with a prompt and a few parameters, take about 12 MiB.
MAX_FILE_BYTES = 32 << 20
CHUNK_BYTES = 256 << 10
UNREADY_S = 60  #: of a file whose content was not stored, because its gateway died
MAX_FILES = 10_000  # of one owner; a list of them is read whole


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The metadata of one file; its content is stored under its own key."""

    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: float
    expires_at: float

    def to_openai(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class FileStore:
    """Every file of every caller; methods with an `owner` see only that caller's files."""

    def __init__(self, queue: JobQueue, ttl_s: int) -> None:
        self._queue, self._redis, self._keys, self._ttl_s = queue, queue.redis, queue.keys, ttl_s

    async def add(
        self, owner: str, filename: str, purpose: str, data: bytes, expires_after_s: int | None = None
    ) -> StoredFile:
        """Store a file; `expires_after_s` deletes it earlier than the default.

        Raises:
            InvalidRequest: `expires_after_s` is longer than the default.
            BodyTooLarge: larger than all that the owner may store. RateLimited, QueueFull: larger than what is left.
            NotReplicated: too few replicas of Redis have it.
            StorageUnavailable: the store of FLUID_RESULTS does not take the content.
        """
        if expires_after_s is not None and expires_after_s > self._ttl_s:
            raise InvalidRequest(
                f"'expires_after[seconds]' must be at most {self._ttl_s} (FLUID_BATCH_TTL_S), not {expires_after_s}.",
                param="expires_after[seconds]",
            )
        limits = self._queue.memory_limits
        if owner and 0 < limits["max_key_bytes"] < len(data):
            raise BodyTooLarge(
                f"'file' has {len(data)} bytes, and an API key may store {limits['max_key_bytes'] // MIB} MiB "
                "(FLUID_MAX_KEY_MIB). Split it.",
                param="file",
            )
        file_id, ttl_s, store = f"file-{secrets.token_hex(12)}", expires_after_s or self._ttl_s, self._queue.store
        name = upload_name(store.namespace, file_id) if store else None
        args = {
            "id": file_id, "object": name, "owner": owner, "filename": filename, "purpose": purpose,
            "size_bytes": len(data), "unready_s": UNREADY_S, "ttl_s": ttl_s, "list_ttl_s": self._ttl_s,
            "limits": {**limits, "max_files": MAX_FILES},
        }  # fmt: skip
        outcome, used, now = await self._queue.run("file_create", args)
        if outcome == "files":
            raise RateLimited(f"{used} files are stored, the limit is {MAX_FILES}. Delete some.", param="file")
        if outcome != "new":
            raise self._queue.memory_refusal(outcome, used, owner, "file")
        try:
            if store and name:
                await store.put(name, data)
            else:
                await self._redis.set(self._keys.file_bytes(file_id), data, ex=UNREADY_S)
            if not await self._queue.run("file_ready", {"id": file_id, "owner": owner}, replicated=True):
                lost = f"A failover of Redis lost the file, or storing it took more than {UNREADY_S} s."
                raise NotReplicated(lost, retry_after_s=1)
        except (RedisError, NotReplicated, StorageUnavailable):
            with suppress(RedisError):
                await self._queue.run("file_delete", {"id": file_id, "owner": owner})
            raise
        return StoredFile(file_id, filename, purpose, len(data), float(now), float(now) + ttl_s)

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """Return the metadata of a file.

        Raises:
            UnknownFile: there is no such file, or it belongs to another owner.
            UnreadableRecord: see server/records.py.
        """
        found = await read_hash(self._redis, self._keys.file_hash(file_id), f"File {file_id[:100]!r}")
        if not found or found.get("owner") != owner or "unready" in found:
            raise self._unknown(file_id)
        try:
            return StoredFile(
                file_id, found["filename"], found["purpose"], int(found["size_bytes"]),
                finite(found["created_at"]), finite(found["expires_at"]),
            )  # fmt: skip
        except UNREADABLE as error:
            raise UnreadableRecord(f"File {file_id[:100]!r} was written by another version of this service.") from error

    async def size_of(self, owner: str, file_id: str, batch_id: str = "") -> int:
        """Size of the content, in bytes. A batch may read a file that its lines name even if its owner has deleted it.

        Raises:
            UnknownFile: there is no such file, or it belongs to another owner.
        """
        try:
            return (await self.get(owner, file_id)).size_bytes
        except UnknownFile:
            readers = self._keys.file_readers_zset(file_id)
            if not batch_id or await self._redis.zscore(readers, batch_id) is None:
                raise
        outside = await self._redis.hget(self._keys.file_object_hash(file_id), "size_bytes")
        return int(outside or await self._redis.strlen(self._keys.file_bytes(file_id)))

    async def content(self, file_id: str) -> bytes:
        """Return the whole content.

        Raises:
            UnknownFile: the file has expired or was deleted. StorageUnavailable: see `_object`.
        """
        if (found := await self._object(file_id)) is not None:
            data = await found[0].get(found[1])
        else:
            data = await self._redis.execute_command("GET", self._keys.file_bytes(file_id), NEVER_DECODE=True)
        if data is None:
            raise self._gone(file_id)
        return cast(bytes, data)

    async def _object(self, file_id: str) -> tuple[ObjectStore, str] | None:
        """Return the store of the content and its name there; None if it lies in Redis.

        Raises:
            StorageUnavailable: in a store that this gateway does not have.
        """
        name = await self._redis.hget(self._keys.file_object_hash(file_id), "name")
        if name is not None and self._queue.store is None:
            raise StorageUnavailable("is not known to this gateway, whose FLUID_RESULTS is redis")
        return (self._queue.store, name) if name is not None and self._queue.store is not None else None

    async def _range(self, file_id: str, start: int, end: int) -> bytes:
        """The content from `start` to before `end`, or less where it is gone."""
        if (found := await self._object(file_id)) is not None:
            return await found[0].get_range(found[1], start, end) or b""
        key = self._keys.file_bytes(file_id)
        return cast(bytes, await self._redis.execute_command("GETRANGE", key, start, end - 1, NEVER_DECODE=True))

    async def chunks(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Yield the content in chunks: a stalled reader holds one chunk in memory instead of the whole file.

        Raises:
            UnknownFile: the file has expired or was deleted meanwhile. StorageUnavailable: see `_object`.
        """
        for start in range(0, file.size_bytes, CHUNK_BYTES):
            chunk = await self._range(file.id, start, min(start + CHUNK_BYTES, file.size_bytes))
            if not chunk:
                raise self._gone(file.id)
            yield chunk

    async def lines(self, file_id: str, offsets: Sequence[int]) -> builtins.list[str]:
        """Return the lines that begin at all offsets but the last, which is where the last line ends.

        Raises:
            UnknownFile: the content has expired. StorageUnavailable: see `_object`.
        """
        first = offsets[0]
        data = await self._range(file_id, first, offsets[-1])
        if len(data) < offsets[-1] - first:
            raise self._gone(file_id)
        return [data[start - first : end - first].decode(errors="replace") for start, end in pairwise(offsets)]

    async def list(self, owner: str, limit: int, after: str | None) -> tuple[builtins.list[StoredFile], bool]:
        """Return one page, newest first, and whether more files follow."""
        ids = ids_after(await self._redis.zrevrange(self._keys.file_list(owner), 0, -1), after, "file")
        return await read_listed(ids, partial(self.get, owner), limit=limit, what="file", unknown=UnknownFile)

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete a file; its content stays, and counts, while a batch reads it.

        Raises:
            UnknownFile: there is no such file, or it belongs to another owner.
        """
        if not await self._queue.run("file_delete", {"id": file_id, "owner": owner}):
            raise self._unknown(file_id)

    def _gone(self, file_id: str) -> UnknownFile:
        return UnknownFile(f"File {file_id[:100]!r} has expired or was deleted.", param="file_id")

    def _unknown(self, file_id: str) -> UnknownFile:
        return UnknownFile(
            f"No file has the id {file_id[:100]!r}; files expire after {self._ttl_s} s.", param="file_id"
        )
