"""The background half of batches: feed lines to the queue a few at a time, and finish or cancel batches.

Any gateway may claim any batch and advance it by one step. Every step is safe to repeat: a gateway that dies in the
middle of one loses nothing and generates no image twice. Jobs wait in the low priority class, MAX_UNFINISHED_JOBS of a
batch and FLUID_MAX_BATCH_LINES of an API key at a time, so the queue stays short for all other callers.
"""

import asyncio
import json
import logging
from dataclasses import replace

from prometheus_client import Counter
from redis.exceptions import RedisError

from server.batch_format import EDITS_URL, OVER, Line, LineError, index_lines, not_for_lines, parse_line
from server.errors import (
    InvalidRequest,
    JobCanceled,
    NotReplicated,
    NoWorkers,
    QueueFull,
    RateLimited,
    RequestError,
    StorageUnavailable,
    UnknownFile,
    UnreadableRecord,
)
from server.errors.limits import RETRY_WHEN_USED_UP_S
from server.gateway.batches.edit_lines import EditLine
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import COMPLETION_WINDOW_S, Batch
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.requests.resolve import resolve
from server.gateway.requests.validation import validated
from server.gateway.schemas.images import ImageRequest
from server.jobs import JobInput
from server.queue.due_work import claim_from, poll_due
from server.queue.job_queue import JobQueue, Outcome, Submission
from server.queue.redis_client import read_hash, redis_time
from server.records import skip
from server.telemetry.job_trace import request_attributes
from server.telemetry.tracing import OFF, Tracing

log = logging.getLogger(__name__)
MAX_UNFINISHED_JOBS = 64  # of one batch, waiting or running
STEP_INTERVAL_S = 0.25  # between two steps of a batch that has no room for more jobs
PAUSE_S = 5.0  # before the next step of one whose next line memory has no room for, or whose records are unreadable
VISIBILITY_TIMEOUT_S = 15.0  # after this a gateway counts as dead and another may claim the batch
CONCURRENT_BATCHES = 16
LINE_ERROR_BYTES = 400  # what a rejected line's error takes; every line may be rejected


class BatchRunner:
    """Advances every batch from validating to one of its final states."""

    def __init__(
        self,
        queue: JobQueue,
        fleet: Fleet,
        files: FileStore,
        store: BatchStore,
        ttl_s: int,
        bugs: Counter,
        tracing: Tracing = OFF,
    ) -> None:
        self._tracing = tracing
        self._queue, self._redis, self._keys = queue, queue.redis, queue.keys
        self._fleet, self._files, self._store, self._ttl_s, self._bugs = fleet, files, store, ttl_s, bugs
        # Parsing 32 MiB holds the interpreter for seconds: several files at a time would delay every request.
        self._parsing = asyncio.Lock()

    async def run_forever(self) -> None:
        """Claim due batches and advance them, until canceled."""
        claim = claim_from(self._queue, self._keys.batches_zset, VISIBILITY_TIMEOUT_S)
        await poll_due("batches", claim, self.advance, at_once=CONCURRENT_BATCHES, bugs=self._bugs)

    async def advance(self, batch_id: str) -> None:
        """Take the next step of a batch, as its status requires, and schedule the step after it."""
        try:
            fields = await read_hash(self._redis, self._keys.batch_hash(batch_id), f"Batch {batch_id}")
            if not fields or fields.get("status") in OVER:
                await self._store.forget(batch_id)
                return
            batch = Batch.from_fields(batch_id, fields)
        except UnreadableRecord as error:  # due again after the visibility timeout, for a gateway that can read it
            skip("a batch", error)
            return
        pause_s = STEP_INTERVAL_S
        # Cancellation and expiry come first, so that a step that keeps failing cannot keep a batch alive.
        if batch.status == "cancelling":
            await self._finalize(batch, "cancelled")
        elif await redis_time(self._redis) > float(fields["expires_at"]):
            await self._finalize(batch, "expired")
        elif batch.status == "validating" and not self._parsing.locked():
            async with self._parsing:
                await self._validate(batch)
        elif batch.status == "validating":
            pass  # its turn comes with a later step
        elif batch.status != "in_progress":
            skip("a batch", UnreadableRecord(f"unknown status {batch.status!r}"))
            return
        elif batch.cursor < batch.total:
            pause_s = await self._submit_lines(batch)
        elif batch.unfinished <= 0:
            await self._store.end(batch, "completed")
        due_at = await redis_time(self._redis) + pause_s
        # Never later than it is due already: a cancel that came meanwhile makes it due at once.
        await self._redis.zadd(self._keys.batches_zset, {batch_id: due_at}, xx=True, lt=True)

    async def _validate(self, batch: Batch) -> None:
        """Find the lines of the input file, which stays for them; a file that cannot be parsed fails the batch."""
        file_id, named = batch.fields["input_file_id"], set[str]()
        try:
            offsets = await asyncio.to_thread(index_lines, await self._files.content(file_id), batch.endpoint, named)
        except StorageUnavailable:  # the next step repeats this one
            return
        except LineError as error:
            await self._fail(batch, str(error), error.code, error.line)
            return
        except UnknownFile as error:  # deleted since the batch was created
            await self._fail(batch, error.message, error.code, None)
            return
        lines = len(offsets) - 1
        args = {
            "id": batch.id,
            "lines": lines,
            "line_bytes": LINE_ERROR_BYTES,
            "expires_s": COMPLETION_WINDOW_S + self._ttl_s,
            "limits": self._queue.memory_limits,
        }
        outcome, used = await self._queue.run("batch_index", args, offsets.tobytes())
        if outcome == "ok":
            await self._store.keep_files(batch, sorted(named))
            await self._store.transition(batch, "in_progress", expected=("validating",), total=str(lines))
        elif outcome == "gone":
            await self._fail(batch, f"File {file_id} has expired or was deleted.", UnknownFile.code, None)
        elif outcome != "moved":
            refusal = self._queue.memory_refusal(outcome, used, batch.fields["owner"])
            await self._fail(batch, refusal.message, refusal.code, None)

    async def _fail(self, batch: Batch, message: str, code: str, line: int | None) -> None:
        await self._store.transition(batch, "failed", expected=(batch.status,), errors=_errors(message, code, line))

    async def _submit_lines(self, batch: Batch) -> float:
        """Queue as many lines as there is room for; wait while a limit leaves none, or no model is known. Returns the
        seconds until the next step.

        A line that raises an unexpected exception is rejected alone: otherwise every later step would fail on it
        again, and the lines after it would never be generated.
        """
        end = batch.cursor + MAX_UNFINISHED_JOBS - batch.unfinished
        first, upto = batch.cursor, min(batch.cursor + 1, end)  # one at first: most steps of a waiting batch add none
        while first < upto:
            try:
                texts = await self._store.lines(batch, first, upto)
            except StorageUnavailable:  # the next step repeats this one
                return STEP_INTERVAL_S
            except UnknownFile as error:
                if first > batch.cursor:  # the next step, which knows of the lines that were queued in this one
                    return STEP_INTERVAL_S
                # Each step comes here, until the lines that were queued before have ended.
                await self._finalize(batch, "failed", errors=_errors(error.message, error.code, None))
                return STEP_INTERVAL_S
            for number, text in enumerate(texts, first):
                if (pause_s := await self._submit_line(batch, number, text)) is not None:
                    return pause_s
            first, upto = upto, min(end, batch.total)
        return STEP_INTERVAL_S

    async def _submit_line(self, batch: Batch, number: int, text: str) -> float | None:
        """Queue or reject a line. Returns None if the next may follow, or the seconds until the next step."""
        refused: RequestError | None = None
        try:
            await self._submit(batch, number, parse_line(text))
        except UnreadableRecord as error:  # for a gateway that can read it
            skip("a batch", error)
            return PAUSE_S
        except JobCanceled:  # with the batch, by another gateway
            return STEP_INTERVAL_S
        except (QueueFull, RateLimited, NoWorkers, NotReplicated, StorageUnavailable) as error:
            # The next step continues here. Memory is free when something expires, and only an edit that has been
            # decoded has its size: without a pause that would be four times a second.
            return PAUSE_S if error.retry_after_s == RETRY_WHEN_USED_UP_S else STEP_INTERVAL_S
        except RequestError as error:
            refused = error
        except RedisError:  # not the line's fault; the next step continues here
            raise
        except Exception as error:
            self._bugs.labels("batches").inc()
            log.exception("batches: %s: rejecting line %d", batch.id, number + 1)
            message = (
                f"The service failed on this line ({type(error).__name__}); its log has the details. Simplify the line."
            )
            refused = RequestError(message)
        if await self._store.pass_line(batch, number, refused):
            return None
        return STEP_INTERVAL_S  # canceled, or ended by another gateway

    async def _submit(self, batch: Batch, number: int, line: Line) -> None:
        if line.error:
            raise InvalidRequest(line.error)
        if wrong := not_for_lines(line.body):
            raise InvalidRequest(wrong[1], param=wrong[0])
        models, default = await self._fleet.models(), await self._fleet.default_model()
        mapping = await self._fleet.mapping_since(float(batch.fields["created_at"]), line.body.get("model"))
        if batch.endpoint == EDITS_URL:
            edit = EditLine.of(line.body)
            job, _ = resolve(edit.request, models, default, mapping)
            submission = self._submission(batch, number, edit.request, job)
            # Ahead of the images: a line that waits for room reads and decodes none, and a repeated step needs none,
            # which may be gone.
            if (await self._queue.ask(submission)).outcome is not Outcome.ROOM:
                return
            job, source = await edit.load(submission.job_id, batch, self._files, models, default, mapping)
            submission = self._submission(batch, number, edit.request, job, source)
        else:
            request = validated(ImageRequest, line.body)
            job, _ = resolve(request, models, default, mapping)
            submission = self._submission(batch, number, request, job)
        span = self._tracing.batch_line(batch.id, number + 1, batch.fields.get("trace", ""))
        if span is not None:
            span.set(request_attributes(submission.job_id, submission.job))
            submission = replace(submission, trace=str(span.context))
        try:
            await self._queue.enqueue(submission)
        finally:
            if span is not None:
                span.end()

    def _submission(
        self, batch: Batch, number: int, request: ImageRequest, job: JobInput, source: bytes | None = None
    ) -> Submission:
        job = replace(
            job,
            priority="low",
            owner=batch.fields["owner"],
            batch=batch.id,
            result_ttl_s=COMPLETION_WINDOW_S + self._ttl_s,
        )
        return Submission(batch.job_id(number), job, "batch", fingerprint=request.fingerprint(), source=source)

    async def _finalize(self, batch: Batch, status: str, **fields: str) -> None:
        """Cancel the unfinished jobs, and set the final status once there are none; no new lines are submitted."""
        if await self._store.cancel_lines(batch):
            await self._store.end(batch, status, **fields)


def _errors(message: str, code: str, line: int | None) -> str:
    """The field `errors` of a batch that failed as a whole."""
    return json.dumps({"object": "list", "data": [{"code": code, "line": line, "message": message, "param": None}]})
