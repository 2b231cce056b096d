"""Keep the leases of the jobs in hand alive, and hear which of them were canceled."""

import asyncio
import time

from redis.exceptions import RedisError

from server.queue.lease_queue import LeaseQueue, LeaseRenewal
from server.worker.heartbeat import log
from server.worker.scheduler import Scheduler

RENEW_S = 0.1


LISTEN_S = 1.0


class LeaseRenewer:
    """Renews leases and reports progress; what the queue answers becomes flags that the loop reads."""

    def __init__(self, queue: LeaseQueue, held: Scheduler, lease_s: float) -> None:
        self._queue = queue
        self._held = held
        self._renew_every = lease_s / 3

    async def forever(self) -> None:
        renew_at = time.monotonic() + self._renew_every
        while True:
            await asyncio.sleep(RENEW_S)
            renew = time.monotonic() >= renew_at
            try:
                await self.once(renew=renew)
            except RedisError as error:
                log.warning("cannot renew the leases of %d jobs: %s", len(self._held.works), error)
                continue
            if renew:
                renew_at = time.monotonic() + self._renew_every

    async def once(self, *, renew: bool) -> None:
        works = [w for w in self._held.works.values() if not (w.closing or w.lost)]
        pulses = [LeaseRenewal(w.lease, w.started, sum(w.steps_done.values())) for w in works]
        answers = await self._queue.renew(pulses, extend=renew)
        for work, answer in zip(works, answers, strict=True):
            # A job whose end was written while the pulse was under way is over, not lost.
            work.lost |= answer == "lost" and not work.closing
            work.canceled |= answer == "cancel"


class CancelListener:
    """Frees rows within one step of the cancel. The pulse reads the same flags, should a message be lost."""

    def __init__(self, queue: LeaseQueue, held: Scheduler) -> None:
        self._queue = queue
        self._held = held

    async def forever(self) -> None:
        while True:
            try:
                async with self._queue.redis.pubsub() as pubsub:
                    await pubsub.subscribe(self._queue.keys.canceled_channel)
                    while True:
                        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                        work = self._held.works.get(message["data"]) if message else None
                        if work is not None:
                            work.canceled = True
            except RedisError as error:
                log.warning("lost the subscription to cancellations (%s); the pulse reads them", error)
                await asyncio.sleep(LISTEN_S)
