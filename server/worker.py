"""The worker process: take jobs, admit rows, one step for every row, publish; drains on SIGTERM."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError, ResponseError

from server.batching import Batch, Work
from server.connection import connect
from server.ends import Ends
from server.engine_api import Engine
from server.engine_thread import EngineThread
from server.errors import ConfigError, EngineBroken
from server.jobs import JobError, Lease
from server.metrics import Tally
from server.publisher import Publisher
from server.pulse import Heartbeat, LeasePulse, beside
from server.queue import Queue
from server.registry import Registry
from server.settings import Settings

log = logging.getLogger(__name__)
IDLE_BLOCK_MS = 500  # longest deafness to SIGTERM and to lapsed leases while there is nothing to do
RECLAIM_S = 0.25


class Worker:
    """One engine, one event loop. Redis may come and go; the engine's failures stay with their job."""

    def __init__(self, settings: Settings, queue: Queue, registry: Registry) -> None:
        self.settings = settings
        self.queue = queue
        self.registry = registry
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.thread = EngineThread()
        self.batch = Batch(settings.max_rows)
        self.tally = Tally()
        self.heart = Heartbeat(self.id, registry, self.batch, self.tally)
        self.pulse = LeasePulse(self.id, queue, self.batch, settings.lease_s)
        self.ends = Ends(queue, self.thread, self.batch, self.tally, settings.lease_s)
        self.publisher = Publisher(queue, self.ends, self.tally)
        self._drain_deadline: float | None = None
        self._reclaim_at = 0.0

    # --- life -----------------------------------------------------------------------------------------

    async def run(self, factory: Callable[[], Engine]) -> None:
        await self._until_redis_answers()
        try:
            async with beside(self.heart.forever(), self.pulse.forever()):
                await self._prepare(factory)
                await self._work()
        finally:
            await self._say_goodbye()

    async def _prepare(self, factory: Callable[[], Engine]) -> None:
        """Load, publish the model, draw the canary; only then is the worker ready."""
        began = time.monotonic()
        info = self.heart.model = self.publisher.model = await self.thread.load(factory)
        await self.ends.persist(lambda: self.registry.publish_model(info))
        await self.ends.persist(lambda: self.queue.leave(self.id))  # clears away what killed workers left behind
        self.heart.note = "drawing its canary picture"
        await self.thread.canary(info)
        self.heart.state, self.heart.note = "ready", ""
        self.tally.count("fluid_worker_starts_total")
        await self.heart.once()
        log.info("ready: %s, %d rows, after %.1f s", info.id, self.batch.max_rows, time.monotonic() - began)

    async def _work(self) -> None:
        while not (self.draining and not self.batch.works and not self.publisher.running):
            try:
                await self._drain_if_asked()
                await self._take()
                await self.ends.drop_ended()
                await self._admit()
                await self._step()
            except RedisError as error:
                log.warning("Redis: %s; trying again", error)
                await asyncio.sleep(0.2)
                await self._reintroduce(error)
            except EngineBroken as error:
                await self.ends.give_everything_back(JobError("engine_broken", str(error)))
                raise

    # --- the four verbs -------------------------------------------------------------------------------

    async def _take(self) -> None:
        if not self.draining and self.batch.room() > 0:
            await self._reclaim()
            while self.batch.room() > 0:
                found = await self.queue.take(self.id, block_ms=None if self.batch.busy else IDLE_BLOCK_MS)
                if found is None:
                    return
                self._hold(found)
        elif not self.batch.busy and self.publisher.running:
            # Without a row and without room nothing below would wait, and a loop that never waits
            # starves the very tasks that are to end it.
            await asyncio.wait(self.publisher.running, return_when=asyncio.FIRST_COMPLETED)

    async def _admit(self) -> None:
        images = self.batch.next_images()
        if images:
            await self._admit_images(images)

    async def _step(self) -> None:
        rows = self.batch.rows
        if not rows:
            return
        began = time.monotonic()
        try:
            outcome = await self.thread.step(rows)
        except Exception as error:
            log.exception("the engine failed in a step of %d rows", len(rows))
            await self.ends.engine_failed("ar_step", error, self.batch.active)
            return
        self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "ar_step")
        self.tally.observe("fluid_batch_size", len(rows))
        for row, work in rows.items():
            work.batch_peak = max(work.batch_peak, len(rows))
            if row in outcome.progress:
                work.steps_done[work.rows[row]] = outcome.progress[row]
        for row, pixels in outcome.images.items():
            work = rows[row]
            index = self.batch.unseat(work, row, again=False)
            work.steps_done[index] = work.lease.input.num_inference_steps
            work.predict_s = time.monotonic() - work.taken_at
            self.publisher.start(work, index, pixels)
        for row, failure in outcome.failures.items():
            work = rows[row]
            self.batch.unseat(work, row, again=True)
            await self.ends.engine_failed("image", failure, [work])

    # --- their helpers --------------------------------------------------------------------------------

    async def _reclaim(self) -> None:
        """One at a time: a job of many images, or a suspect, may leave no room for a second."""
        while self.batch.room() > 0 and time.monotonic() >= self._reclaim_at:
            held = {work.lease.entry for work in self.batch.works.values()}
            leases = await self.queue.reclaim(self.id, held, count=1)
            if not leases:
                self._reclaim_at = time.monotonic() + RECLAIM_S
            for lease in leases:
                self._hold(lease)

    def _hold(self, lease: Lease) -> None:
        self.batch.add(lease, time.monotonic())
        self.tally.observe("fluid_queue_wait_seconds", lease.started_at - lease.created_at)

    async def _admit_images(self, images: Sequence[tuple[Work, int]]) -> None:
        works = list(dict.fromkeys(work for work, _ in images))
        began = time.monotonic()
        try:
            rows = await self.thread.admit([work.request(index) for work, index in images])
        except ValueError as error:
            if len(works) == 1:
                await self.ends.refuse(works[0], str(error))
                return
            for work in works:  # one of them cannot be drawn; asked one by one, the engine tells which
                await self._admit_images([image for image in images if image[0] is work])
        except Exception as error:
            log.exception("the engine failed to admit %d images", len(images))
            await self.ends.engine_failed("admit", error, works)
        else:
            self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "admit")
            for (work, index), row in zip(images, rows, strict=True):
                self.batch.seat(work, index, row)

    # --- going, and Redis going -----------------------------------------------------------------------

    def stop(self) -> None:
        """First call: drain. Second call: give everything back now."""
        now = time.monotonic()
        self._drain_deadline = now if self.draining else now + self.settings.drain_s
        if self.heart.state == "loading":
            # Nothing was taken, so nothing can be lost; a thread that loads weights cannot be interrupted.
            log.info("stopped while loading")
            os._exit(0)
        self.heart.state = "draining"
        log.info("draining: %d jobs held", len(self.batch.works))

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    async def _drain_if_asked(self) -> None:
        if self._drain_deadline is None:
            return
        if time.monotonic() >= self._drain_deadline:
            await self.ends.give_everything_back(None)
        for work in list(self.batch.works.values()):
            if not work.started and not work.closing:
                await self.ends.give_back(work, None)

    async def _say_goodbye(self) -> None:
        self.thread.close()
        try:
            await self.heart.once()  # the last figures
            await self.registry.farewell(self.id)
            await self.queue.leave(self.id)
        except RedisError as error:
            log.warning("leaving without a goodbye: %s", error)

    async def _until_redis_answers(self) -> None:
        while True:
            try:
                return await self.queue.open()
            except RedisError as error:
                log.warning("waiting for Redis at %s: %s", self.settings.redis_url, error)
                await asyncio.sleep(0.5)

    async def _reintroduce(self, error: RedisError) -> None:
        """A Redis that came back without its data knows neither the workers' group nor our model."""
        if isinstance(error, ResponseError) and self.heart.model is not None:
            with contextlib.suppress(RedisError):
                await self.queue.open()
                await self.registry.publish_model(self.heart.model)


def load_engine(settings: Settings) -> Engine:
    """The only place where the service meets the model."""
    if settings.engine == "fake":
        from server.fake_engine import FakeEngine

        return FakeEngine(settings.max_rows, settings.fake_step_ms / 1000)
    # Before torch is loaded: threads that spin long while they wait for each other make a worker that shares its
    # machine many times slower; threads that never spin make it twice as slow alone (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from model.checkpoint import CheckpointError
    from model.config import ConfigError as ModelConfigError
    from model.serving import load_engine as load

    try:
        return load(
            checkpoint_dir=settings.checkpoint,
            max_rows=settings.max_rows,
            device=settings.device,
            threads=settings.threads,
        )
    except (CheckpointError, ModelConfigError) as error:
        raise ConfigError(f"{error} (FLUID_CHECKPOINT={settings.checkpoint!r})") from error


async def serve(settings: Settings) -> None:
    if not settings.redis_url:
        raise ConfigError("A worker needs FLUID_REDIS_URL. `fluid serve` starts everything, Redis included.")
    async with contextlib.AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(settings.redis_url))
        worker = Worker(settings, Queue(redis, settings), Registry(redis, settings.namespace))
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, worker.stop)
        await worker.run(lambda: load_engine(settings))
