"""The watcher of a gateway: one subscription that wakes every request waiting for a job or following its events."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from redis.exceptions import RedisError

from server.background import RepeatedFailure, Task
from server.errors import JobExpired, UnknownJob
from server.jobs import JobInput, JobRecord
from server.queue.connection.subscription import Subscription
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.redis_client import Client
from server.records import UNREADABLE, read_json, skip

log = logging.getLogger(__name__)
POLL_S = 1.0  # pub/sub may drop a message, so the state in Redis is polled as well


class JobWatcher:
    """Wakes waiters when a job's end is published, and followers at each of its events."""

    def __init__(self, redis: Client, queue: JobQueue, namespace: str) -> None:
        self._redis = redis
        self._queue = queue
        self.name = secrets.token_hex(8)  #: of this gateway as the waiter for a job
        keys = Keys(namespace)
        self._ended, self._updated = keys.ended_channel, keys.updated_channel
        self._answers = keys.answers_channel(self.name)
        self._waiters: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._followers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._orphans: set[str] = set()

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The endless background tasks, by name."""
        return {"watcher": self._listen, "sweeper": self._sweep}

    @contextmanager
    def expect(self, job_id: str) -> Iterator[Waiter]:
        """Register a waiter for the end of a job, before it is accepted: an immediate end must not be missed."""
        waiter = Waiter(self._queue, job_id)
        self._waiters[job_id].add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    @contextmanager
    def no_orphans(self, job_id: str) -> Iterator[None]:
        """Cancel the job, as soon as Redis answers again, if an outage ends the block: its caller was told of a failure
        and repeats the request, which would generate it twice."""
        try:
            yield
        except RedisError:
            self._orphans.add(job_id)
            raise

    @contextmanager
    def follow(self, job_id: str) -> Iterator[asyncio.Event]:
        """Register a follower: the event is set whenever the job has, or may have, new events."""
        changed = asyncio.Event()
        self._followers[job_id].add(changed)
        try:
            yield changed
        finally:
            self._followers[job_id].discard(changed)
            if not self._followers[job_id]:
                del self._followers[job_id]

    async def _listen(self) -> None:
        while True:
            try:
                channels = (self._ended, self._updated, self._answers)
                async with Subscription(self._redis, self._on_message, *channels) as subscription:
                    for job_id in list(self._followers):  # messages may have been missed in between
                        self._notify_followers(job_id)
                    await subscription.watch()
            except RedisError as error:
                log.warning("lost the subscription to ended jobs (%s); polling until it is back", error)
                await asyncio.sleep(POLL_S)

    def _on_message(self, channel: str, message: bytes) -> None:
        if channel == self._answers:
            self._answer(message)
        else:
            (self._notify_followers if channel == self._updated else self._notify)(message.decode(errors="replace"))

    def _answer(self, message: bytes) -> None:
        """Pass on the record, as JSON in the first line, and the only image, if it follows, of a job that has ended."""
        text, _, image = message.partition(b"\n")
        try:
            fields = read_json(text)
            waiters = self._waiters.get(fields["id"], ())
        except UNREADABLE as error:  # the waiters then read the record themselves
            skip("the end of a job", error)
            return
        for waiter in waiters:
            waiter.answer(fields, image or None)

    async def _sweep(self) -> None:
        """Poll for all waiters at once: deadlines also pass while no worker is there to notice, and messages get
        lost."""
        failure = RepeatedFailure(log)
        while True:
            await asyncio.sleep(POLL_S)
            accepted = [job_id for job_id, waiters in self._waiters.items() if any(w.accepted for w in waiters)]
            try:
                await self._queue.sweep()
                ended = await self._queue.ended(accepted)
                await self._cancel_orphans()
                failure.over()
            except RedisError as error:
                failure.warn(f"cannot sweep: {error}")
                ended = accepted  # each waiter then reads its job and raises the error to its caller
            for job_id in ended:
                self._notify(job_id)

    async def _cancel_orphans(self) -> None:
        for job_id in list(self._orphans):
            with suppress(UnknownJob, JobExpired):  # it was not accepted, or has ended
                await self._queue.cancel(job_id)
            self._orphans.discard(job_id)

    @property
    def followers(self) -> int:
        return sum(len(events) for events in self._followers.values())

    def _notify_followers(self, job_id: str) -> None:
        for changed in self._followers.get(job_id, ()):
            changed.set()

    def _notify(self, job_id: str) -> None:
        for waiter in self._waiters.get(job_id, ()):
            waiter.event.set()
        # Followers too: a repeated request follows the job of the first, whose events may not be kept.
        self._notify_followers(job_id)


class Waiter:
    """Waits for the end of one job."""

    def __init__(self, queue: JobQueue, job_id: str) -> None:
        self.event = asyncio.Event()
        self.accepted = False
        self.known: JobInput | None = None  #: the job's input, where the waiter need not read it
        self._answer: tuple[Mapping[str, str], bytes | None] | None = None
        self._abandoned = self._over = False
        self._queue = queue
        self._job_id = job_id

    def answer(self, fields: Mapping[str, str], image: bytes | None) -> None:
        """Tell how the job ended: the record's fields but the input, and its only image if that is known."""
        self._answer = fields, image
        self.event.set()

    def abandon(self) -> None:
        """Make `end` return None, unless the job has ended by now."""
        self._abandoned = True
        self.event.set()

    async def end(self, timeout_s: float) -> JobRecord | None:
        """Wait until the job, which has been accepted by now, is terminal; return its record, or None if abandoned.

        Raises:
            TimeoutError: the job has not ended after `timeout_s`.
        """
        self.accepted = True
        # asyncio.timeout would cost more than the rest of the wait. Timers of uvloop have whole milliseconds: when one
        # fires, the clock can be short of its time.
        timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up)
        try:
            while True:
                await self.event.wait()
                self.event.clear()
                if self._abandoned:
                    return None
                if self._over:
                    raise TimeoutError
                record = self._answered() or await self._queue.get(self._job_id, known=self.known)
                if record.state.terminal:
                    return record
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._over = True
        self.event.set()

    def _answered(self) -> JobRecord | None:
        answer, self._answer = self._answer, None
        if answer is None or self.known is None:
            return None
        return replace(JobRecord.from_fields(answer[0], self.known), image=answer[1])
