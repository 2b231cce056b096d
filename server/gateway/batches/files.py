"""Uploaded files: the input of batches. Kept in Redis with an end, listed per owner."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from server.errors import InvalidRequest, UnknownFile
from server.queue.job_queue import JobQueue
from server.queue.pagination import ids_after

#: 50,000 lines of a prompt and a few parameters are about 12 MiB.
MAX_FILE_BYTES = 32 << 20
PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: float
    expires_at: float

    def view(self) -> dict[str, Any]:
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


class Files:
    def __init__(self, queue: JobQueue, ttl_s: int) -> None:
        self._redis, self._keys, self._ttl_s = queue.redis, queue.keys, ttl_s

    async def add(
        self, owner: str, filename: str, purpose: str, data: bytes, expires_after_s: int | None = None
    ) -> StoredFile:
        """`expires_after_s`: sooner than all files go."""
        if expires_after_s is not None and expires_after_s > self._ttl_s:
            raise InvalidRequest(
                f"'expires_after[seconds]' must be at most {self._ttl_s} (FLUID_BATCH_TTL_S), not {expires_after_s}.",
                param="expires_after[seconds]",
            )
        now, ttl_s = time.time(), expires_after_s or self._ttl_s
        made = StoredFile(f"file-{secrets.token_hex(12)}", filename, purpose, len(data), now, now + ttl_s)
        about = {
            "filename": filename, "purpose": purpose, "size_bytes": len(data), "owner": owner,
            "created_at": now, "expires_at": made.expires_at,
        }  # fmt: skip
        index = self._keys.file_list(owner)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.file_bytes(made.id), data, ex=ttl_s)
            pipe.hset(self._keys.file_hash(made.id), mapping=about)
            pipe.expire(self._keys.file_hash(made.id), ttl_s)
            pipe.zremrangebyscore(index, "-inf", now - self._ttl_s)
            pipe.zadd(index, {made.id: now})
            pipe.expire(index, self._ttl_s)
            await pipe.execute()
        return made

    async def get(self, owner: str, file_id: str) -> StoredFile:
        found = await self._redis.hgetall(self._keys.file_hash(file_id))
        if not found or found["owner"] != owner:
            raise UnknownFile(
                f"No file has the id {file_id[:100]!r}; files are kept for {self._ttl_s} s.", param="file_id"
            )
        return StoredFile(
            file_id, found["filename"], found["purpose"], int(found["size_bytes"]),
            float(found["created_at"]), float(found["expires_at"]),
        )  # fmt: skip

    async def content(self, file_id: str) -> bytes:
        data = await self._redis.execute_command("GET", self._keys.file_bytes(file_id), NEVER_DECODE=True)
        if data is None:
            raise UnknownFile(f"The file {file_id[:100]!r} is gone.", param="file_id")
        return cast(bytes, data)

    async def pieces(self, file: StoredFile) -> AsyncIterator[bytes]:
        """The content bit by bit: a reader who stalls holds one piece in memory, and not the file."""
        for start in range(0, file.size_bytes, PIECE_BYTES):
            ends = (start, start + PIECE_BYTES - 1)
            piece = await self._redis.execute_command(
                "GETRANGE", self._keys.file_bytes(file.id), *ends, NEVER_DECODE=True
            )
            if not piece:
                raise UnknownFile(f"The file {file.id[:100]!r} is gone.", param="file_id")
            yield piece

    async def list(self, owner: str, limit: int, after: str | None) -> tuple[list[StoredFile], bool]:
        """(newest first, whether there are more)"""
        ids = ids_after(await self._redis.zrevrange(self._keys.file_list(owner), 0, -1), after, "file")
        found: list[StoredFile] = []
        for file_id in ids:
            try:
                found.append(await self.get(owner, file_id))
            except UnknownFile:  # its time came
                continue
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, file_id: str) -> None:
        await self.get(owner, file_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(self._keys.file_hash(file_id), self._keys.file_bytes(file_id))
            pipe.zrem(self._keys.file_list(owner), file_id)
            await pipe.execute()
