"""Renews the leases of held jobs and learns which of them were canceled."""

import asyncio
import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from server.queue.connection.subscription import Subscription
from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.worker.scheduling.scheduler import Scheduler

log = logging.getLogger(__name__)
REPORT_S = 0.1
RETRY_S = 1.0


class LeaseRenewer:
    """Renews leases and reports progress; the queue's answers become flags that the loop reads."""

    def __init__(
        self,
        queue: LeaseQueue,
        scheduler: Scheduler,
        lease_s: float,
        note_progress: Callable[[], object],
        wake: Callable[[], None],
    ) -> None:
        """`note_progress` brings the jobs' steps up to date; `wake` is called after a job was flagged."""
        self._queue = queue
        self._scheduler = scheduler
        self._renew_every = lease_s / 3
        self._note_progress = note_progress
        self._wake = wake

    async def run(self) -> None:
        """Report every REPORT_S and renew every third of a lease, until canceled."""
        renew_at = time.monotonic() + self._renew_every
        while True:
            await asyncio.sleep(REPORT_S)
            renew = time.monotonic() >= renew_at
            try:
                await self.report(renew=renew)
            except RedisError as error:
                log.warning("cannot renew the leases of %d jobs: %s", len(self._scheduler.jobs), error)
                continue
            if renew:
                renew_at = time.monotonic() + self._renew_every

    async def report(self, *, renew: bool) -> None:
        """Report every job's progress, renew the leases if asked to, and flag jobs that are lost or canceled."""
        if not self._scheduler.jobs:
            return
        self._note_progress()
        jobs = [job for job in self._scheduler.jobs.values() if not (job.closing or job.lost)]
        renewals = [LeaseRenewal(job.lease, job.started, sum(job.steps_done.values())) for job in jobs]
        answers = await self._queue.renew(renewals, extend=renew)
        for job, answer in zip(jobs, answers, strict=True):
            # A job whose final state was written while the renewal was under way is over, not lost.
            job.lost |= answer == "lost" and not job.closing
            job.canceled |= answer == "cancel"
            if answer != "ok":
                self._wake()


class CancelListener:
    """Flags canceled jobs, so that their rows are free within one step. The renewer reads the same flags, in case a
    message is lost."""

    def __init__(self, queue: LeaseQueue, scheduler: Scheduler, wake: Callable[[], None]) -> None:
        """`wake` is called after a job was flagged."""
        self._queue = queue
        self._scheduler = scheduler
        self._wake = wake

    async def run(self) -> None:
        """Listen until canceled; subscribe again after a lost connection."""
        while True:
            try:
                channel = self._queue.keys.canceled_channel
                async with Subscription(self._queue.redis, self._on_message, channel) as subscription:
                    await subscription.watch()
            except RedisError as error:
                log.warning("lost the subscription to cancellations (%s); lease renewals read them", error)
                await asyncio.sleep(RETRY_S)

    def _on_message(self, _: str, message: bytes) -> None:
        if (job := self._scheduler.jobs.get(message.decode(errors="replace"))) is not None:
            job.canceled = True
            self._wake()
