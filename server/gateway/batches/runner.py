"""Many requests from one file, fed to the queue a few at a time: any gateway takes turns with any batch.

A batch is a hash (where it stands), a list (its lines) and jobs whose ids follow from batch and line. Every turn may
be repeated: a gateway that dies in the middle of one costs nothing and draws nothing twice. Jobs wait in the low class,
and only WINDOW of them at a time, so the line stays short for everybody else. Results are read from the jobs.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from prometheus_client import Counter
from redis.exceptions import RedisError

from server.batch_format import OVER, Line, LineError, not_for_lines, parse_lines
from server.errors import (
    InvalidRequest,
    JobExpired,
    KeyReused,
    NoWorkers,
    QueueFull,
    RequestError,
    UnknownBatch,
    UnknownFile,
    UnknownJob,
)
from server.gateway.batches.files import Files
from server.gateway.batches.record import WINDOW_S, Batch
from server.gateway.fleet import Fleet
from server.gateway.requests.resolve import resolve
from server.gateway.requests.validation import validated
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobRecord
from server.queue.due_work import poll_due
from server.queue.job_queue import JobQueue, Submission
from server.queue.pagination import ids_after

log = logging.getLogger(__name__)
WINDOW = 64  # jobs of one batch that wait or run
TURN_S = 0.25  # between two turns of a batch whose window is full
VISIBILITY_TIMEOUT_S = 15.0  # a turn that takes longer was its gateway's last
AT_ONCE = 4


class Batches:
    def __init__(self, queue: JobQueue, fleet: Fleet, files: Files, ttl_s: int, bugs: Counter) -> None:
        self._queue, self._redis, self._keys = queue, queue.redis, queue.keys
        self._fleet, self._files, self._ttl_s, self._bugs = fleet, files, ttl_s, bugs

    # --- for the routes -------------------------------------------------------------------------------

    async def create(self, owner: str, file_id: str, metadata: Mapping[str, str] | None, key: str) -> Batch:
        """With an Idempotency-Key the id follows from it, so that a repetition finds the batch that there is, also when
        its file is gone by then."""
        name = hashlib.sha256(f"{owner} {key}".encode()).hexdigest()[:24] if key else secrets.token_hex(12)
        batch_id, about = f"batch_{name}", json.dumps(metadata, sort_keys=True)
        fingerprint = hashlib.sha256(f"{file_id} {about}".encode()).hexdigest()
        if not (key and await self._redis.exists(self._keys.batch_hash(batch_id))):
            await self._files.get(owner, file_id)
        args = {
            "id": batch_id,
            "owner": owner,
            "input_file_id": file_id,
            "metadata": about,
            "fingerprint": fingerprint,
            "expires_s": WINDOW_S,
            "ttl_s": self._ttl_s,
        }
        if await self._queue.run("batch_create", args) == "differs":
            raise KeyReused(f"The Idempotency-Key {key!r} is that of another batch. Use a new one for a new batch.")
        return await self.get(owner, batch_id)

    async def get(self, owner: str, batch_id: str) -> Batch:
        fields = await self._redis.hgetall(self._keys.batch_hash(batch_id))
        if not fields or fields["owner"] != owner:
            raise UnknownBatch(f"No batch has the id {batch_id[:100]!r}.", param="batch_id")
        return Batch(batch_id, fields)

    async def list(self, owner: str, limit: int, after: str | None) -> tuple[list[Batch], bool]:
        """(newest first, whether there are more)"""
        ids = ids_after(await self._redis.zrevrange(self._keys.batch_list(owner), 0, -1), after, "batch")
        found = []
        for batch_id in ids:
            fields = await self._redis.hgetall(self._keys.batch_hash(batch_id))
            if fields:
                found.append(Batch(batch_id, fields))
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Safe to repeat. What has been drawn stays; the rest is canceled on the next turns."""
        await self._move(await self.get(owner, batch_id), "cancelling", of=("validating", "in_progress"))
        return await self.get(owner, batch_id)

    async def results(self, batch: Batch, *, errors: bool) -> AsyncIterator[tuple[int, str, JobRecord | None, str]]:
        """Ended lines in order: (line, custom id, its job, else why it was refused)."""
        refused = await self._redis.hgetall(self._keys.batch_errors(batch.id))
        for start in range(0, batch.cursor, 100):
            texts = await self._redis.lrange(
                self._keys.batch_lines(batch.id), start, min(start + 100, batch.cursor) - 1
            )
            for number, text in enumerate(texts, start):
                custom_id = Line.from_json(text).custom_id
                if str(number) in refused:
                    if errors:
                        yield number, custom_id, None, refused[str(number)]
                    continue
                try:
                    record = await self._queue.get(batch.job_id(number))
                except (UnknownJob, JobExpired):
                    continue
                if record.state.terminal and errors != (record.state == "succeeded"):
                    yield number, custom_id, record, ""

    # --- the turns ------------------------------------------------------------------------------------

    async def forever(self) -> None:
        await poll_due(
            self._queue,
            "batches",
            self._keys.batches_zset,
            self._turn,
            visibility_timeout_s=VISIBILITY_TIMEOUT_S,
            at_once=AT_ONCE,
            bugs=self._bugs,
        )

    async def _turn(self, batch_id: str) -> None:
        fields = await self._redis.hgetall(self._keys.batch_hash(batch_id))
        batch = Batch(batch_id, fields)
        if not fields or batch.status in OVER:
            await self._redis.zrem(self._keys.batches_zset, batch_id)
            return
        # Before all else, so that nothing that goes wrong in a turn can keep a batch for ever.
        if batch.status == "cancelling":
            await self._wind_up(batch, "cancelled")
        elif time.time() > float(fields["expires_at"]):
            await self._wind_up(batch, "expired")
        elif batch.status == "validating":
            await self._validate(batch)
        elif batch.cursor < batch.total:
            await self._feed(batch)
        elif batch.under_way <= 0:
            await self._move(batch, "completed", of=("in_progress",))
        await self._redis.zadd(self._keys.batches_zset, {batch_id: time.time() + TURN_S}, xx=True)

    async def _validate(self, batch: Batch) -> None:
        try:
            data = await self._files.content(batch.fields["input_file_id"])
            lines = await asyncio.to_thread(parse_lines, data)
        except LineError as error:
            await self._fail(batch, str(error), error.code, error.line)
            return
        except UnknownFile as error:  # it was deleted
            await self._fail(batch, error.message, error.code, None)
            return
        key = self._keys.batch_lines(batch.id)
        await self._redis.delete(key)  # of a turn that was broken off
        for start in range(0, len(lines), 1000):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(key, *(line.to_json() for line in lines[start : start + 1000]))
                pipe.expire(key, WINDOW_S + self._ttl_s)  # should the batch be over by now, nobody else would
                await pipe.execute()
        await self._move(batch, "in_progress", of=("validating",), total=str(len(lines)))

    async def _fail(self, batch: Batch, message: str, code: str, line: int | None) -> None:
        errors = {"object": "list", "data": [{"code": code, "line": line, "message": message, "param": None}]}
        await self._move(batch, "failed", of=("validating",), errors=json.dumps(errors))

    async def _feed(self, batch: Batch) -> None:
        """As many lines as the window has room for; a full queue, or no model yet, is a reason to wait.

        A line that fails in a way that nobody foresaw fails alone: the same turn would fail at it again for ever, and
        no line behind it would be drawn.
        """
        room = WINDOW - batch.under_way
        if room <= 0:
            return
        texts = await self._redis.lrange(self._keys.batch_lines(batch.id), batch.cursor, batch.cursor + room - 1)
        for number, text in enumerate(texts, batch.cursor):
            try:
                await self._submit(batch, number, Line.from_json(text))
            except (QueueFull, NoWorkers):
                return
            except RequestError as error:
                await self._refuse(batch, number, error)
            except RedisError:  # of no line; the next turn goes on
                raise
            except Exception as error:
                self._bugs.labels("batches").inc()
                log.exception("batches: %s: line %d is refused", batch.id, number + 1)
                told = f"The service failed at this line ({type(error).__name__}); its log says how. Simplify the line."
                await self._refuse(batch, number, RequestError(told))
            await self._redis.hset(self._keys.batch_hash(batch.id), "cursor", number + 1)

    async def _submit(self, batch: Batch, number: int, line: Line) -> None:
        request = validated(ImageRequest, line.body)
        if wrong := not_for_lines(line.body):
            raise InvalidRequest(wrong[1], param=wrong[0])
        job, _ = resolve(request, await self._fleet.models(), await self._fleet.default_model())
        job = replace(
            job,
            priority="low",
            owner=batch.fields["owner"],
            batch=batch.id,
            result_ttl_s=WINDOW_S + self._ttl_s,
        )
        await self._queue.enqueue(Submission(batch.job_id(number), job, "batch", fingerprint=request.fingerprint()))

    async def _refuse(self, batch: Batch, number: int, error: RequestError) -> None:
        """Counted once, however often this turn is repeated."""
        key = self._keys.batch_errors(batch.id)
        if await self._redis.hset(key, str(number), json.dumps({"status": error.status, "body": error.body()})):
            await self._redis.hincrby(self._keys.batch_hash(batch.id), "refused", 1)

    async def _wind_up(self, batch: Batch, status: str) -> None:
        """Cancel what is under way; what was not begun never will be."""
        if batch.under_way <= 0:
            await self._move(batch, status, of=(batch.status,))
            return
        # One beyond the cursor: a turn that was broken off may have queued it.
        for number in range(max(0, batch.cursor - 4 * WINDOW), batch.cursor + 1):
            try:
                await self._queue.cancel(batch.job_id(number))
            except (UnknownJob, JobExpired):  # refused, or long over
                continue

    async def _move(self, batch: Batch, status: str, *, of: tuple[str, ...], **fields: str) -> None:
        """To another status, if it is still one `of` these: a cancel may have come in between."""
        args = {"id": batch.id, "to": status, "from": of, "ttl_s": self._ttl_s, "fields": fields}
        await self._queue.run("batch_move", args)
