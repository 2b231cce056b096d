"""The event log of a job, in order and numbered: kept in Redis, so that any gateway can resume a stream.

Events are kept from the moment the job is first followed, beginning with its state then, up to its end.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.jobs import TERMINAL, JobRecord, JobState
from server.queue.job_queue import JobQueue
from server.queue.watcher import JobWatcher

log = logging.getLogger(__name__)
PING_S = 15.0  # proxies close a connection that is silent for a minute
PAGE = 100
RETRY_S = 0.5
MAX_READING = 16  # followers that read at the same time
BEGINNING = "0-0"
#: The value of each type of event, as a regular expression.
_VALUES = {"status": "|".join(JobState), "progress": "[0-9]{1,18}", "partial_image": "[0-9]{1,9} [0-9]{1,9}"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `type` is status (value: the state), progress (value: steps done) or partial_image (value: image index
    and preview number)."""

    id: str
    type: str
    value: str

    @property
    def known(self) -> bool:
        """False for an event of another version, which is not shown."""
        pattern = _VALUES.get(self.type)
        return pattern is not None and re.fullmatch(pattern, self.value) is not None

    @property
    def ends(self) -> bool:
        return self.type == "status" and self.value in TERMINAL

    @property
    def preview(self) -> tuple[int, int]:
        index, number = self.value.split()
        return int(index), int(number)


class Events:
    """Reads and follows events; the scripts that change a job write them."""

    def __init__(self, queue: JobQueue, watcher: JobWatcher) -> None:
        self._queue = queue
        self._watcher = watcher
        #: One event wakes every follower of its job; read all at once, 1,500 of them held up other requests for 3 s.
        self._reading = asyncio.Semaphore(MAX_READING)

    async def begin(self, job_id: str, owner: str) -> JobRecord:
        """Start keeping the events of a job, and return its record.

        Raises:
            UnknownJob, JobExpired: this owner has no such job, or it was deleted.
        """
        record = await self._queue.get(job_id, owner)
        await self._queue.run("follow", {"id": job_id})
        return record

    async def follow(
        self, job_id: str, after: str = BEGINNING, limit_s: float = math.inf
    ) -> AsyncGenerator[Event | None, None]:
        """Iterate over the events after `after` up to the job's end, with None after each PING_S of silence.

        Outages of Redis are waited out; its other errors are raised.

        Raises:
            JobExpired: the job was deleted during an outage. TimeoutError: it has not ended after `limit_s`.
        """
        deadline, sent_at = time.monotonic() + limit_s, time.monotonic()
        with self._watcher.follow(job_id) as changed:
            while True:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"job {job_id} has not ended after {limit_s:g} s")
                changed.clear()
                try:
                    async with self._reading:
                        found = await self._read_or_end(job_id, after)
                except (RedisConnectionError, RedisTimeoutError) as error:
                    log.warning("cannot read the events of %s (%s); retrying", job_id, error)
                    await asyncio.sleep(RETRY_S)
                    if time.monotonic() - sent_at >= PING_S:
                        sent_at = time.monotonic()
                        yield None
                    continue
                if found:
                    sent_at = time.monotonic()
                for event in found:
                    after = event.id
                    if event.known:
                        yield event
                    if event.ends:
                        return
                if not found and not await _set_within(changed, min(PING_S, deadline - time.monotonic())):
                    sent_at = time.monotonic()
                    yield None

    async def _read_or_end(self, job_id: str, after: str) -> list[Event]:
        """Read the next events; if there are none and the job has ended, its end."""
        found = await self._read(job_id, after)
        if not found and (state := (await self._queue.get(job_id)).state).terminal:
            # The last events may have been written in between. If not, it ended before it was followed, or the
            # follower has seen everything.
            found = await self._read(job_id, after) or [Event(after, "status", state)]
        return found

    async def _read(self, job_id: str, after: str) -> list[Event]:
        page = await self._queue.redis.xrange(self._queue.keys.events_stream(job_id), min=f"({after}", count=PAGE)
        return [Event(entry, fields.get("type", ""), fields.get("value", "")) for entry, fields in page]

    async def preview(self, job_id: str, index: int, number: int) -> bytes | None:
        key = self._queue.keys.preview_bytes(job_id, index, number)
        return cast("bytes | None", await self._queue.redis.execute_command("GET", key, NEVER_DECODE=True))


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), max(0.0, seconds))
    except TimeoutError:
        return False
    return True
