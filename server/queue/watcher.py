"""Waiting for jobs to end: one subscription per gateway, however many requests wait."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from server import background
from server.jobs import JobRecord
from server.queue.job_queue import JobQueue
from server.queue.keys import Keys
from server.queue.redis_client import Client

log = logging.getLogger(__name__)
POLL_S = 1.0  # pub/sub may drop a message; the state in Redis never lies, so look there now and then


class JobWatcher:
    """Wakes the requests that wait for a job when its end is published."""

    def __init__(self, redis: Client, queue: JobQueue, namespace: str) -> None:
        self._redis = redis
        self._queue = queue
        self._done, self._news = Keys(namespace).ended_channel, Keys(namespace).updated_channel
        self._waiting: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._following: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        await background.cancel_and_wait(*self._tasks)

    @contextmanager
    def expect(self, job_id: str) -> Iterator[Waiter]:
        """Register for the end of a job. Before it is accepted, so that an end that comes at once is not missed."""
        expected = Waiter(self._queue, job_id)
        self._waiting[job_id].add(expected)
        try:
            yield expected
        finally:
            self._waiting[job_id].discard(expected)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    @contextmanager
    def follow(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happens to a job that is followed, or may have."""
        bell = asyncio.Event()
        self._following[job_id].add(bell)
        try:
            yield bell
        finally:
            self._following[job_id].discard(bell)
            if not self._following[job_id]:
                del self._following[job_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._done, self._news)
                    for job_id in list(self._following):  # who knows what happened in between
                        self._ring(job_id)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=POLL_S)
                        if message is not None and message["channel"] == self._news:
                            self._ring(message["data"])
                        elif message is not None:
                            self._wake(message["data"])
            except RedisError as error:
                log.warning("lost the subscription to finished jobs (%s); polling until it is back", error)
                await asyncio.sleep(POLL_S)

    async def _sweep(self) -> None:
        """Deadlines pass also while no worker is there to notice, and messages get lost: one look for all who wait."""
        while True:
            await asyncio.sleep(POLL_S)
            accepted = [job_id for job_id, those in self._waiting.items() if any(each.accepted for each in those)]
            try:
                await self._queue.sweep()
                ended = await self._queue.ended(accepted)
            except RedisError as error:
                log.warning("cannot sweep: %s", error)
                ended = accepted  # they look for themselves, and tell their callers
            for job_id in ended:
                self._wake(job_id)

    @property
    def followers(self) -> int:
        return sum(len(bells) for bells in self._following.values())

    def _ring(self, job_id: str) -> None:
        for bell in self._following.get(job_id, ()):
            bell.set()

    def _wake(self, job_id: str) -> None:
        for expected in self._waiting.get(job_id, ()):
            expected.event.set()
        self._ring(job_id)  # who follows a job that is not his own first: nobody may keep its events


class Waiter:
    """A job whose end somebody waits for."""

    def __init__(self, queue: JobQueue, job_id: str) -> None:
        self.event = asyncio.Event()
        self.accepted = False
        self._queue = queue
        self._job_id = job_id

    async def end(self, timeout_s: float) -> JobRecord:
        """The record of the job, which is accepted now, when it is terminal; TimeoutError if that takes longer."""
        self.accepted = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            async with asyncio.timeout_at(deadline):  # not around Redis, which could swallow it: cancellation.py
                await self.event.wait()
            self.event.clear()
            record = await self._queue.get(self._job_id)
            if record.state.terminal:
                return record
