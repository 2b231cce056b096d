"""Uploaded files, the input of batches: kept in Redis with an expiry, listed per owner."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from server.errors import InvalidRequest, UnknownFile, UnreadableRecord
from server.gateway.pagination import ids_after
from server.queue.job_queue import JobQueue
from server.queue.redis_client import redis_time
from server.records import UNREADABLE, finite, skip

#: 50,000 lines, each with a prompt and a few parameters, take about 12 MiB.
MAX_FILE_BYTES = 32 << 20
CHUNK_BYTES = 256 << 10


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
        self._redis, self._keys, self._ttl_s = queue.redis, queue.keys, ttl_s

    async def add(
        self, owner: str, filename: str, purpose: str, data: bytes, expires_after_s: int | None = None
    ) -> StoredFile:
        """Store a file; `expires_after_s` deletes it earlier than the default.

        Raises:
            InvalidRequest: `expires_after_s` is longer than the default.
        """
        if expires_after_s is not None and expires_after_s > self._ttl_s:
            raise InvalidRequest(
                f"'expires_after[seconds]' must be at most {self._ttl_s} (FLUID_BATCH_TTL_S), not {expires_after_s}.",
                param="expires_after[seconds]",
            )
        now, ttl_s = await redis_time(self._redis), expires_after_s or self._ttl_s
        stored = StoredFile(f"file-{secrets.token_hex(12)}", filename, purpose, len(data), now, now + ttl_s)
        fields = {
            "filename": filename, "purpose": purpose, "size_bytes": len(data), "owner": owner,
            "created_at": now, "expires_at": stored.expires_at,
        }  # fmt: skip
        index = self._keys.file_list(owner)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.file_bytes(stored.id), data, ex=ttl_s)
            pipe.hset(self._keys.file_hash(stored.id), mapping=fields)
            pipe.expire(self._keys.file_hash(stored.id), ttl_s)
            pipe.zremrangebyscore(index, "-inf", now - self._ttl_s)
            pipe.zadd(index, {stored.id: now})
            pipe.expire(index, self._ttl_s)
            await pipe.execute()
        return stored

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """Return the metadata of a file.

        Raises:
            UnknownFile: there is no such file, or it belongs to another owner.
            UnreadableRecord: see server/records.py.
        """
        found = await self._redis.hgetall(self._keys.file_hash(file_id))
        if not found or found.get("owner") != owner:
            raise UnknownFile(
                f"No file has the id {file_id[:100]!r}; files expire after {self._ttl_s} s.", param="file_id"
            )
        try:
            return StoredFile(
                file_id, found["filename"], found["purpose"], int(found["size_bytes"]),
                finite(found["created_at"]), finite(found["expires_at"]),
            )  # fmt: skip
        except UNREADABLE as error:
            raise UnreadableRecord(f"File {file_id[:100]!r} was written by another version of this service.") from error

    async def content(self, file_id: str) -> bytes:
        """Return the whole content.

        Raises:
            UnknownFile: the file has expired or was deleted.
        """
        data = await self._redis.execute_command("GET", self._keys.file_bytes(file_id), NEVER_DECODE=True)
        if data is None:
            raise UnknownFile(f"File {file_id[:100]!r} has expired or was deleted.", param="file_id")
        return cast(bytes, data)

    async def chunks(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Yield the content in chunks: a stalled reader holds one chunk in memory instead of the whole file.

        Raises:
            UnknownFile: the file has expired or was deleted meanwhile.
        """
        for start in range(0, file.size_bytes, CHUNK_BYTES):
            end = start + CHUNK_BYTES - 1
            chunk = await self._redis.execute_command(
                "GETRANGE", self._keys.file_bytes(file.id), start, end, NEVER_DECODE=True
            )
            if not chunk:
                raise UnknownFile(f"File {file.id[:100]!r} has expired or was deleted.", param="file_id")
            yield chunk

    async def list(self, owner: str, limit: int, after: str | None) -> tuple[list[StoredFile], bool]:
        """Return one page, newest first, and whether more files follow."""
        ids = ids_after(await self._redis.zrevrange(self._keys.file_list(owner), 0, -1), after, "file")
        found: list[StoredFile] = []
        for file_id in ids:
            try:
                found.append(await self.get(owner, file_id))
            except UnknownFile:  # expired between the two reads
                continue
            except UnreadableRecord as error:
                skip("a file", error)
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, file_id: str) -> None:
        """Delete a file; batches that have read it are not affected.

        Raises:
            UnknownFile: there is no such file, or it belongs to another owner.
        """
        await self.get(owner, file_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.file_hash(file_id), self._keys.file_bytes(file_id))
            pipe.zrem(self._keys.file_list(owner), file_id)
            await pipe.execute()
