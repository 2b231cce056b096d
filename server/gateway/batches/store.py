"""Batches as the routes use them: create, look up, list, cancel, read results.

A batch is a hash (its record), an index of the lines in its file, and jobs whose ids follow from the batch's id and the
line's number.
"""

import builtins
import hashlib
import json
import secrets
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from server.batch_format import OVER, URL, LineError, parse_line
from server.errors import (
    JobExpired,
    KeyReused,
    NotReplicated,
    RateLimited,
    RequestError,
    UnknownBatch,
    UnknownFile,
    UnknownJob,
)
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import COMPLETION_WINDOW_S, Batch, LineResult
from server.gateway.pagination import ids_after, read_listed
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import RESULT_EXTRA_S
from server.queue.redis_client import read_hash
from server.records import UNREADABLE, skip
from server.telemetry.tracing import current

#: Lines per read from Redis.
CHUNK_LINES = 100
RECORD_BYTES = 2048  # of a batch beside its metadata and lines
MAX_LISTED = 10_000  # batches of one owner that have not expired; a list of them is read whole


class BatchStore:
    """Every batch of every caller; methods with an `owner` see only that caller's batches."""

    def __init__(self, queue: JobQueue, files: FileStore, ttl_s: int, max_batches: int = 0) -> None:
        self._queue, self._redis, self._keys = queue, queue.redis, queue.keys
        self._files, self._ttl_s, self._max_batches = files, ttl_s, max_batches

    async def create(
        self, owner: str, file_id: str, metadata: Mapping[str, str] | None, key: str, endpoint: str = URL
    ) -> Batch:
        """Create a batch, or return the one that the same request with the same Idempotency-Key created before.

        The id is derived from the key, so a retry finds its batch even after the input file has been deleted.

        Raises:
            UnknownFile: the owner has no such file.
            KeyReused: the key belongs to a batch with another file or other metadata.
            RateLimited, QueueFull: the owner, or all owners, have as many batches or bytes as they may.
            NotReplicated: too few replicas of Redis have it; without a key, its cancellation has begun.
        """
        name = hashlib.sha256(f"{owner} {key}".encode()).hexdigest()[:24] if key else secrets.token_hex(12)
        batch_id, metadata_json = f"batch_{name}", json.dumps(metadata, sort_keys=True)
        request = f"{file_id} {metadata_json}" + (f" {endpoint}" if endpoint != URL else "")
        fingerprint = hashlib.sha256(request.encode()).hexdigest()
        if not (key and await self._redis.exists(self._keys.batch_hash(batch_id))):
            await self._files.get(owner, file_id)
        span = current.get()
        args = {
            "id": batch_id,
            "owner": owner,
            "input_file_id": file_id,
            "metadata": metadata_json,
            "endpoint": endpoint,
            "fingerprint": fingerprint,
            "expires_s": COMPLETION_WINDOW_S,
            "ttl_s": self._ttl_s,
            "trace": str(span.context) if span else None,
            "bytes": RECORD_BYTES + len(metadata_json),
            "limits": {
                **self._queue.memory_limits,
                "max_batches": self._max_batches if owner else 0,
                "max_listed": MAX_LISTED,
            },
        }
        try:
            outcome, used = await self._queue.run("batch_create", args, replicated=True)
        except NotReplicated as error:
            raise await self._not_replicated(error, batch_id, key) from error
        if outcome == "differs":
            raise KeyReused(f"Idempotency-Key {key!r} was used for a different batch. Use a new key for a new batch.")
        if outcome == "batches":
            raise RateLimited(
                f"{used} batches of {owner!r} are unfinished, the limit is {self._max_batches} (FLUID_MAX_BATCHES). "
                "Cancel some, or try later.",
                retry_after_s=60,
            )
        if outcome == "listed":
            raise RateLimited(f"{used} batches are kept, the limit is {MAX_LISTED}. They expire (FLUID_BATCH_TTL_S).")
        if outcome not in ("new", "known"):
            raise self._queue.memory_refusal(outcome, used, owner, "input_file_id")
        return await self.get(owner, batch_id)

    async def _not_replicated(self, error: NotReplicated, batch_id: str, key: str) -> NotReplicated:
        """The error of a batch that the primary has, unless it is lost; nobody could cancel one without a key."""
        outcome = "Repeat the request with its Idempotency-Key, which finds its batch if there is one."
        if not key:
            args = {"id": batch_id, "to": "cancelling", "from": ["validating", "in_progress"], "ttl_s": self._ttl_s}
            with suppress(RedisError):
                await self._queue.run("batch_move", args | {"fields": {}})
            outcome = "Its batch was canceled; try again."
        return NotReplicated(f"{error.message} {outcome}", retry_after_s=error.retry_after_s)

    async def get(self, owner: str, batch_id: str) -> Batch:
        """Return one batch.

        Raises:
            UnknownBatch: there is no such batch, or it belongs to another owner.
        """
        fields = await read_hash(self._redis, self._keys.batch_hash(batch_id), f"Batch {batch_id[:100]!r}")
        if not fields or fields.get("owner") != owner:
            raise UnknownBatch(f"No batch has the id {batch_id[:100]!r}.", param="batch_id")
        return Batch.from_fields(batch_id, fields)

    async def list(self, owner: str, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """Return one page, newest first, and whether more batches follow."""
        ids = ids_after(await self._redis.zrevrange(self._keys.batch_list(owner), 0, -1), after, "batch")
        return await read_listed(ids, partial(self.get, owner), limit=limit, what="batch", unknown=UnknownBatch)

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Mark a batch as cancelling; the runner then cancels its unfinished jobs. Safe to repeat."""
        batch = await self.get(owner, batch_id)
        await self.transition(batch, "cancelling", expected=("validating", "in_progress"))
        return await self.get(owner, batch_id)

    async def transition(self, batch: Batch, status: str, *, expected: tuple[str, ...], **fields: str) -> None:
        """Set a new status if the current one is still among `expected`: a cancel may have come in between."""
        args = {"id": batch.id, "to": status, "from": expected, "ttl_s": self._ttl_s, "fields": fields}
        if await self._queue.run("batch_move", args) and status in OVER:
            await self.forget(batch.id)

    async def forget(self, batch_id: str) -> None:
        """Release the files that the lines of an ended batch name, and have no gateway work on the batch any more."""
        kept = self._keys.batch_files_zset(batch_id)
        while named := await self._redis.zrange(kept, 0, CHUNK_LINES - 1):
            await self._queue.run("batch_files", {"id": batch_id, "files": named})
        await self._redis.zrem(self._keys.batches_zset, batch_id)

    async def keep_files(self, batch: Batch, named: Sequence[str]) -> None:
        """Keep the files that lines name as images until the batch ends, even if they expire or are deleted."""
        for first in range(0, len(named), CHUNK_LINES):
            args = {"files": named[first : first + CHUNK_LINES], "expires_s": COMPLETION_WINDOW_S + self._ttl_s}
            await self._queue.run("batch_files", {"id": batch.id, **args})

    async def end(self, batch: Batch, status: str, **fields: str) -> None:
        """Move a batch whose lines have all ended to a final status; from now on its lines expire when it does.

        The lines first: an end that is interrupted between the two is repeated as a whole.
        """
        for first in range(0, batch.cursor + 1, CHUNK_LINES):  # one beyond the cursor, as BatchRunner cancels it
            args = {"id": batch.id, "first": first, "last": min(first + CHUNK_LINES - 1, batch.cursor)}
            await self._queue.run(
                "batch_release", args | {"ttl_s": self._ttl_s, "image_ttl_s": self._ttl_s + RESULT_EXTRA_S}
            )
        await self.transition(batch, status, expected=(batch.status,), **fields)

    async def pass_line(self, batch: Batch, number: int, error: RequestError | None = None) -> bool:
        """Record that a line became a job, or was rejected with an error; return whether the next line may follow."""
        text = json.dumps({"status": error.status, "body": error.body()}) if error else None
        return bool(await self._queue.run("batch_line", {"id": batch.id, "line": number, "error": text}))

    async def cancel_lines(self, batch: Batch) -> bool:
        """Cancel every line that has not ended, and return whether all have; those that run end within a step.

        One beyond the cursor too: an interrupted step may have queued that line. Safe to repeat, and then cheaper: a
        call begins at the first line that the one before it left running.
        """
        args: dict[str, Any] = {"id": batch.id, "ttl_s": self._queue.ttl_s, "settles": True}
        for first in range(batch.settled, batch.cursor + 1, CHUNK_LINES):
            args |= {"first": first, "last": min(first + CHUNK_LINES - 1, batch.cursor)}
            if await self._queue.run("batch_cancel", args):
                args["settles"] = False
        return bool(args["settles"])

    async def lines(self, batch: Batch, first: int, end: int) -> builtins.list[str]:
        """Return the texts of the lines from `first` to before `end`, as far as there are any.

        Raises:
            UnknownFile: the file is gone.
        """
        size = array("I").itemsize
        key = self._keys.batch_index(batch.id)
        raw = await self._redis.execute_command("GETRANGE", key, first * size, (end + 1) * size - 1, NEVER_DECODE=True)
        offsets = array("I", raw[: len(raw) // size * size])
        if len(offsets) < 2:
            raise UnknownFile(f"The lines of batch {batch.id} are gone.", param="batch_id")
        return await self._files.lines(batch.fields["input_file_id"], offsets)

    async def _rejections(self, batch: Batch, lines: range) -> dict[int, str]:
        """The errors of those of the lines that were rejected, as JSON."""
        found = await self._redis.hmget(self._keys.batch_errors(batch.id), [str(number) for number in lines])
        return {number: error for number, error in zip(lines, found, strict=True) if error is not None}

    async def results(self, batch: Batch, *, errors: bool) -> AsyncIterator[LineResult]:
        """Yield the lines that have ended, in order: those that succeeded, or with `errors` all others."""
        for start in range(0, batch.cursor, CHUNK_LINES):
            end = min(start + CHUNK_LINES, batch.cursor)
            try:
                texts = await self.lines(batch, start, end)
            except UnknownFile as error:
                skip("the lines of a batch", error)
                return
            rejections = await self._rejections(batch, range(start, end))
            for number, text in enumerate(texts, start):
                try:
                    line = parse_line(text)
                    if number in rejections:
                        if errors:
                            yield LineResult(number, line.custom_id, rejection=json.loads(rejections[number]))
                        continue
                    job = await self._queue.get(batch.job_id(number))
                except (UnknownJob, JobExpired):
                    continue
                except (*UNREADABLE, LineError) as error:
                    skip("a line of a batch", error)
                    continue
                if job.state.terminal and errors != (job.state is JobState.SUCCEEDED):
                    yield LineResult(number, line.custom_id, line.body, job)
