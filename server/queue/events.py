"""What happens to a job, in order and numbered, for those who watch: kept in Redis, so any gateway can go on telling.

A job has events from the moment somebody follows it; a record of its own shows where it stood then. They end with it.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from server.jobs import JobRecord, JobState
from server.queue.job_queue import JobQueue
from server.queue.watcher import JobWatcher

log = logging.getLogger(__name__)
PING_S = 15.0  # proxies close what is silent for a minute
PAGE = 100
RETRY_S = 0.5
BEGINNING = "0-0"


@dataclass(frozen=True, slots=True)
class Event:
    """`type`: status (its value is the state), progress (steps done) or partial_image (image index, preview number)."""

    id: str
    type: str
    value: str

    @property
    def ends(self) -> bool:
        return self.type == "status" and JobState(self.value).terminal

    @property
    def preview(self) -> tuple[int, int]:
        index, number = self.value.split()
        return int(index), int(number)


class Events:
    """Reads and follows; the writing is done by the scripts that change a job."""

    def __init__(self, queue: JobQueue, watcher: JobWatcher) -> None:
        self._queue = queue
        self._watcher = watcher

    async def begin(self, job_id: str, owner: str) -> JobRecord:
        """Have events of a job kept from now on.

        Raises:
            UnknownJob, JobExpired: there is no such job of this owner.
        """
        record = await self._queue.get(job_id, owner)
        await self._queue.run("follow", [job_id])
        return record

    async def follow(
        self, job_id: str, after: str = BEGINNING, limit_s: float = math.inf
    ) -> AsyncGenerator[Event | None, None]:
        """Every event after the given one, up to the job's end; None when nothing has happened for PING_S.

        Redis may go away and come back meanwhile; anything else that it says is no outage, and raised.

        Raises:
            JobExpired: the job was deleted while we were away. TimeoutError: it has not ended after `limit_s`.
        """
        deadline, heard_at = time.monotonic() + limit_s, time.monotonic()
        with self._watcher.follow(job_id) as bell:
            while True:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"job {job_id} has not ended after {limit_s:g} s")
                bell.clear()
                try:
                    found = await self._read(job_id, after)
                    if not found and (state := (await self._queue.get(job_id)).state).terminal:
                        # Its last ones may have come in between; if not, nobody followed it before it ended, or its
                        # follower has heard everything.
                        found = await self._read(job_id, after) or [Event(after, "status", state)]
                except (RedisConnectionError, RedisTimeoutError) as error:
                    log.warning("cannot read the events of %s (%s); trying again", job_id, error)
                    await asyncio.sleep(RETRY_S)
                    if time.monotonic() - heard_at >= PING_S:
                        heard_at = time.monotonic()
                        yield None
                    continue
                if found:
                    heard_at = time.monotonic()
                for event in found:
                    after = event.id
                    yield event
                    if event.ends:
                        return
                if not found and not await _rings(bell, min(PING_S, deadline - time.monotonic())):
                    heard_at = time.monotonic()
                    yield None

    async def _read(self, job_id: str, after: str) -> list[Event]:
        page = await self._queue.redis.xrange(self._queue.keys.events_stream(job_id), min=f"({after}", count=PAGE)
        return [Event(entry, fields["type"], fields["value"]) for entry, fields in page]

    async def preview(self, job_id: str, index: int, number: int) -> bytes | None:
        key = self._queue.keys.preview_bytes(job_id, index, number)
        return cast("bytes | None", await self._queue.redis.execute_command("GET", key, NEVER_DECODE=True))


async def _rings(bell: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(bell.wait(), max(0.0, seconds))
    except TimeoutError:
        return False
    return True
