"""Uploaded files, the input of batches: kept in Redis with an expiry, listed per owner."""

import builtins
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

from redis.exceptions import RedisError

from server.errors import BodyTooLarge, InvalidRequest, NotReplicated, RateLimited, UnknownFile, UnreadableRecord
from server.gateway.pagination import ids_after, read_listed
from server.queue.job_queue import MIB, JobQueue
from server.queue.redis_client import read_hash
from server.records import UNREADABLE, finite

#: 50,000 lines, each with a prompt and a few parameters, take about 12 MiB.
MAX_FILE_BYTES = 32 << 20
CHUNK_BYTES = 256 << 10
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
        file_id, ttl_s = f"file-{secrets.token_hex(12)}", expires_after_s or self._ttl_s
        args = {
            "id": file_id, "owner": owner, "filename": filename, "purpose": purpose, "size_bytes": len(data),
            "ttl_s": ttl_s, "list_ttl_s": self._ttl_s, "limits": {**limits, "max_files": MAX_FILES},
        }  # fmt: skip
        outcome, used, now = await self._queue.run("file_create", args)
        if outcome == "files":
            raise RateLimited(f"{used} files are stored, the limit is {MAX_FILES}. Delete some.", param="file")
        if outcome != "new":
            raise self._queue.memory_refusal(outcome, used, owner, "file")
        try:
            await self._redis.set(self._keys.file_bytes(file_id), data, ex=ttl_s)
            await self._queue.replicated.confirm(self._keys.file_bytes(file_id))
        except (RedisError, NotReplicated):
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
        if not found or found.get("owner") != owner:
            raise self._unknown(file_id)
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

    async def lines(self, file_id: str, offsets: Sequence[int]) -> builtins.list[str]:
        """Return the lines that begin at all offsets but the last, which is where the last line ends.

        Raises:
            UnknownFile: the content has expired.
        """
        key, first = self._keys.file_bytes(file_id), offsets[0]
        data = await self._redis.execute_command("GETRANGE", key, first, offsets[-1] - 1, NEVER_DECODE=True)
        if len(data) < offsets[-1] - first:
            raise UnknownFile(f"File {file_id[:100]!r} has expired or was deleted.", param="file_id")
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

    def _unknown(self, file_id: str) -> UnknownFile:
        return UnknownFile(
            f"No file has the id {file_id[:100]!r}; files expire after {self._ttl_s} s.", param="file_id"
        )
