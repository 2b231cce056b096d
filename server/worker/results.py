"""Writes finished images into the store of FLUID_RESULTS, and keeps the worker from taking jobs while that fails."""

import asyncio
import logging
import time
from dataclasses import replace

from redis.exceptions import RedisError

from server.background import RepeatedFailure, wait_at_most
from server.errors import StorageUnavailable
from server.jobs import Lease, Output
from server.metrics import Tally
from server.queue.lease_queue import RESULT_EXTRA_S, RESUME_S, LeaseQueue
from server.queue.redis_client import redis_time
from server.storage.object_names import expires_at, object_name
from server.storage.reasons import remedy
from server.worker.scheduling.held_job import HeldJob

log = logging.getLogger(__name__)
RETRY_S = 0.5  #: between two calls of a store that fails
CHECK_S = 15.0  #: between two probes of one that works


class ResultWriter:
    """The worker's side of the store. Without one, every method does nothing: images lie in Redis."""

    def __init__(self, queue: LeaseQueue, tally: Tally, worker_id: str, lease_s: float) -> None:
        self._queue = queue
        self._store = queue.store
        self._tally = tally
        self._worker_id = worker_id
        self._patience_s = lease_s
        self._deleting = set[asyncio.Task[None]]()
        self._failed = asyncio.Event()  #: a call of the store has failed
        if self._store is not None:
            self._store.on_trouble = self._failed.set

    @property
    def trouble(self) -> str:
        """Why no image can be stored now; "" if one can."""
        if self._store is None or not self._store.trouble:
            return ""
        return f"the store of finished images {self._store.trouble}"

    async def write(self, job: HeldJob, output: Output, data: bytes) -> Output:
        """Store an image's file and return its output with the location, repeating what fails while the job is ours.

        Raises:
            StorageUnavailable: the store has failed for the length of a lease.
        """
        if self._store is None:
            return output
        lease, began = job.lease, time.monotonic()
        while True:
            try:
                now = await redis_time(self._queue.redis)
                name = self._name(lease, output, now)
                await self._store.put(name, data)
                break
            except (StorageUnavailable, RedisError) as error:
                if isinstance(error, StorageUnavailable):
                    self._tally.count("fluid_result_store_failures_total")
                if time.monotonic() - began > self._patience_s or job.leaving:
                    raise
                await asyncio.sleep(RETRY_S)
        self._tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "store")
        job.trace.add("store", began, **{"fluid.image": output.index})
        output = replace(output, location=name)
        if job.leaving:
            self._delete(name)
        return output

    def _name(self, lease: Lease, output: Output, now: float) -> str:
        assert self._store is not None
        ends = now + self._queue.result_ttl_s(lease)
        return object_name(self._store.namespace, lease.job_id, lease.token, output.index, output.format, ends)

    async def extend(self, job: HeldJob) -> None:
        """Give the earlier images of a long job that ends now names that expire later, as its record does; the sweep
        deletes those under the names that they had.

        Raises:
            StorageUnavailable: the store fails. OSError: an image is gone.
        """
        if self._store is None or len(job.outputs) == 1:
            return
        now = await redis_time(self._queue.redis)
        needed = now + self._queue.result_ttl_s(job.lease) - RESULT_EXTRA_S + RESUME_S
        for output in list(job.outputs.values()):
            if output.location and (expires_at(output.location) or 0) < needed:
                name = self._name(job.lease, output, now)
                if not await self._store.copy(output.location, name):
                    raise OSError(f"image {output.index} is gone from the store of FLUID_RESULTS")
                job.outputs[output.index] = replace(output, location=name)

    def discard(self, job: HeldJob) -> None:
        """Delete in the background what this attempt stored; the sweep deletes what that misses."""
        self._delete(*(each.location for each in job.outputs.values() if each.token == job.lease.token))

    def _delete(self, *names: str) -> None:
        if self._store is not None and any(names):
            task = asyncio.create_task(self._delete_quietly(tuple(filter(None, names))))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def _delete_quietly(self, names: tuple[str, ...]) -> None:
        assert self._store is not None
        try:
            await self._store.delete(*names)
        except StorageUnavailable as error:
            log.info("not deleted yet: %s", error.message)

    async def run(self) -> None:
        """Probe the store, often while it fails, until canceled."""
        failure = RepeatedFailure(log)
        while True:
            if self._store is not None:
                try:
                    await self._store.probe(self._worker_id)
                    failure.over()
                except StorageUnavailable as error:
                    failure.warn(f"{self.trouble}; no jobs are taken until it works. {remedy(error.reason)}")
                self._failed.clear()
            # Any call that fails sets the trouble, which only a probe or a write ends: so the next probe is soon.
            await wait_at_most(self._failed, RETRY_S if self.trouble else CHECK_S)
