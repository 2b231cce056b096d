"""The worker process: take jobs, admit rows, one step for every row, publish; drains on SIGTERM."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from server.batching import Batch, Work
from server.connection import connect
from server.engine_api import Engine
from server.engine_thread import EngineThread
from server.errors import ConfigError, EngineBroken
from server.jobs import JobError, JobMetrics, JobState, Lease, ModelInfo, WorkerInfo
from server.metrics import Tally
from server.publisher import Publisher
from server.queue import Pulse, Queue
from server.registry import BEAT_S, Registry
from server.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
IDLE_BLOCK_MS = 500  # longest deafness to SIGTERM and to lapsed leases while there is nothing to do
PULSE_S = 0.1  # a canceled job keeps its rows for at most this plus one step
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
        self.info: ModelInfo | None = None
        self.publisher: Publisher | None = None
        self._state, self._note = "loading", ""
        self._started_at = time.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_deadline: float | None = None
        self._reclaim_at = 0.0
        self._over = False

    # --- life -----------------------------------------------------------------------------------------

    async def run(self, factory: Callable[[], Engine]) -> None:
        await self._until_redis_answers(self.queue.open)
        beat = asyncio.create_task(self._beat_forever(), name="heartbeat")
        pulse = asyncio.create_task(self._pulse_forever(), name="pulse")
        try:
            await self._prepare(factory)
            await self._work()
        finally:
            self._over = True  # redis-py can swallow a cancellation that arrives while it connects
            for task in (beat, pulse):
                task.cancel()
            await asyncio.gather(beat, pulse, return_exceptions=True)
            await self._say_goodbye()

    async def _prepare(self, factory: Callable[[], Engine]) -> None:
        """Load, publish the model, draw the canary; only then is the worker ready."""
        began = time.monotonic()
        self.info = await self.thread.load(factory)
        self.publisher = Publisher(self.queue, self.info, self.tally, self._persist)
        await self._persist(lambda: self.registry.publish_model(self.info))  # type: ignore[arg-type]
        self._note = "drawing its canary picture"
        await self.thread.canary(self.info)
        self._state, self._note = "ready", ""
        self.tally.count("fluid_worker_starts_total")
        await self._beat_once()
        log.info("ready: %s, %d rows, after %.1f s", self.info.id, self.batch.max_rows, time.monotonic() - began)

    async def _work(self) -> None:
        while not (self.draining and not self.batch.works and not self._tasks):
            try:
                await self._drain_if_asked()
                await self._take_jobs()
                await self._drop_ended()
                await self._admit_rows()
                await self._step_and_publish()
            except RedisError as error:
                log.warning("Redis: %s; trying again", error)
                await asyncio.sleep(0.2)
            except EngineBroken as error:
                await self._give_everything_back(JobError("engine_broken", str(error)))
                raise

    def stop(self) -> None:
        """First call: drain. Second call: give everything back now."""
        now = time.monotonic()
        self._drain_deadline = now if self.draining else now + self.settings.drain_s
        if self._state == "loading":
            # Nothing was taken, so nothing can be lost; a thread that loads weights cannot be interrupted.
            log.info("stopped while loading")
            os._exit(0)
        self._state = "draining"
        log.info("draining: %d jobs held", len(self.batch.works))

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    async def _drain_if_asked(self) -> None:
        if self._drain_deadline is None:
            return
        if time.monotonic() >= self._drain_deadline:
            await self._give_everything_back(None)
        for work in list(self.batch.works.values()):
            if not work.started and not work.closing:
                await self._give_back(work, None)

    # --- the four verbs -------------------------------------------------------------------------------

    async def _take_jobs(self) -> None:
        if self.draining:
            if not self.batch.active and self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            return
        if self.batch.room() > 0 and time.monotonic() >= self._reclaim_at:
            self._reclaim_at = time.monotonic() + RECLAIM_S
            held = {work.lease.entry for work in self.batch.works.values()}
            for lease in await self.queue.reclaim(self.id, held, count=self.batch.room()):
                self._hold(lease)
        while self.batch.room() > 0:
            idle = not self.batch.active and not any(w.waiting for w in self.batch.works.values())
            found = await self.queue.take(self.id, block_ms=IDLE_BLOCK_MS if idle else None)
            if found is None:
                return
            self._hold(found)

    def _hold(self, lease: Lease) -> None:
        stale = self.batch.works.get(lease.job_id)
        if stale is not None:
            # We had lost it and got it again before noticing. Its rows are freed by _drop_ended.
            stale.lost = True
            self.batch.works[f"{lease.job_id}#{stale.lease.token}"] = self.batch.works.pop(lease.job_id)
        self.batch.add(lease, time.monotonic())
        self.tally.observe("fluid_queue_wait_seconds", lease.started_at - lease.created_at)

    async def _drop_ended(self) -> None:
        for work in list(self.batch.works.values()):
            if work.closing or not (work.lost or work.canceled or work.failure):
                continue
            await self._free_rows(work)
            if work.lost:
                self.tally.count("fluid_lease_lost_total")
                log.warning("lost the lease of %s (attempt %d)", work.lease.job_id, work.lease.attempt)
                self.batch.remove(work)
            elif work.canceled:
                await self._finish(work, JobState.CANCELED)
            else:
                await self._give_back(work, work.failure)

    async def _admit_rows(self) -> None:
        images = self.batch.next_images()
        if not images:
            return
        began = time.monotonic()
        try:
            rows = await self.thread.admit([work.request(index) for work, index in images])
        except Exception as error:
            log.exception("the engine failed to admit %d images", len(images))
            await self._engine_failed("admit", error, list(dict.fromkeys(work for work, _ in images)))
            return
        self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "admit")
        for (work, index), row in zip(images, rows, strict=True):
            self.batch.seat(work, index, row)

    async def _step_and_publish(self) -> None:
        rows = self.batch.rows
        if not rows:
            return
        began = time.monotonic()
        try:
            outcome = await self.thread.step(rows)
        except Exception as error:
            log.exception("the engine failed in a step of %d rows", len(rows))
            await self._engine_failed("ar_step", error, self.batch.active)
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
            self._spawn(self._publish(work, index, pixels))
        for row, failure in outcome.failures.items():
            work = rows[row]
            self.batch.unseat(work, row, again=True)
            await self._engine_failed("image", failure, [work])

    async def _publish(self, work: Work, index: int, pixels: bytes) -> None:
        if self.publisher is None:
            raise EngineBroken("A picture is published before the model was loaded.")
        try:
            await self.publisher.publish(work, index, pixels)
        except Exception as error:
            log.exception("cannot encode or store image %d of %s", index, work.lease.job_id)
            # The loop frees its rows between steps; here a step may be running.
            work.failure = JobError("publish_failed", repr(error))
            return
        if work.drawn and not (work.closing or work.lost or work.canceled):
            await self._finish(work, JobState.SUCCEEDED)

    # --- ends -----------------------------------------------------------------------------------------

    async def _finish(self, work: Work, state: JobState) -> None:
        work.closing = True
        lease = work.lease
        queue_s = lease.started_at - lease.created_at
        metrics = JobMetrics(
            queue_time=round(queue_s, 6),
            predict_time=round(work.predict_s, 6),
            encode_time=round(work.encode_s, 6),
            total_time=round(queue_s + time.monotonic() - work.taken_at, 6),
            batch_size=work.batch_peak,
        )
        outputs = [work.outputs[i] for i in sorted(work.outputs)] if state is JobState.SUCCEEDED else []
        try:
            done = await self._persist(lambda: self.queue.finish(lease, state, outputs=outputs, metrics=metrics))
        except RedisError as error:
            log.error("cannot write the end of %s (%s); another worker will draw it", lease.job_id, error)
        else:
            if state is JobState.SUCCEEDED and done:
                self.tally.observe("fluid_job_latency_seconds", metrics.total_time)
            log.info("%s %s in %.3f s%s", lease.job_id, state, metrics.total_time, "" if done else " (fenced)")
        self.batch.remove(work)

    async def _engine_failed(self, stage: str, error: Exception, works: list[Work]) -> None:
        """One job in the failed call: guilty, it goes back. Several: each is tried again alone, here."""
        self.tally.count("fluid_engine_failures_total", stage)
        for work in works:
            await self._free_rows(work)
            work.suspect = True
        if len(works) == 1:
            await self._give_back(works[0], JobError("engine_error", f"{type(error).__name__}: {error}"))

    async def _free_rows(self, work: Work) -> None:
        rows = list(work.rows)
        for row in rows:
            self.batch.unseat(work, row, again=True)
        await self.thread.release(rows)

    async def _give_back(self, work: Work, error: JobError | None) -> None:
        work.closing = True
        try:
            state = await self._persist(lambda: self.queue.give_back(work.lease, error=error))
            log.info("%s given back, now %s", work.lease.job_id, state)
        except RedisError as failure:
            log.error("cannot give %s back (%s); its lease will lapse", work.lease.job_id, failure)
        self.batch.remove(work)

    async def _give_everything_back(self, error: JobError | None) -> None:
        for work in list(self.batch.works.values()):
            if work.closing:
                continue
            if error is None:
                await self._free_rows(work)
            await self._give_back(work, error if work.started else None)

    # --- beside the loop ------------------------------------------------------------------------------

    async def _pulse_forever(self) -> None:
        renew_every = self.settings.lease_s / 3
        renew_at = time.monotonic() + renew_every
        while not self._over:
            await asyncio.sleep(PULSE_S)
            renew = time.monotonic() >= renew_at
            works = [w for w in self.batch.works.values() if not (w.closing or w.lost)]
            pulses = [Pulse(w.lease, w.started, sum(w.steps_done.values())) for w in works]
            try:
                answers = await self.queue.pulse(self.id, pulses, renew=renew)
            except RedisError as error:
                log.warning("cannot renew %d leases: %s", len(works), error)
                continue
            if renew:
                renew_at = time.monotonic() + renew_every
            for work, answer in zip(works, answers, strict=True):
                work.lost |= answer == "lost" and not work.closing
                work.canceled |= answer == "cancel"

    async def _beat_forever(self) -> None:
        while not self._over:
            try:
                await self._beat_once()
            except RedisError as error:
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(BEAT_S)

    async def _beat_once(self) -> None:
        me = WorkerInfo(
            id=self.id,
            state=self._state,
            model=self.info.id if self.info else "",
            max_rows=self.batch.max_rows,
            rows=len(self.batch.rows),
            started_at=self._started_at,
            note=self._note,
        )
        stats = self.tally.drain()
        try:
            await self.registry.beat(me, stats)
        except RedisError:
            self.tally.restore(stats)
            raise

    async def _say_goodbye(self) -> None:
        self.thread.close()
        try:
            await self._beat_once()  # the last figures
            await self.registry.farewell(self.id)
            await self.queue.leave(self.id)
        except RedisError as error:
            log.warning("leaving without a goodbye: %s", error)

    def _spawn(self, work: "Awaitable[None]") -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat an unanswered write while our lease may live. Every write here is safe to repeat."""
        deadline = time.monotonic() + self.settings.lease_s
        while True:
            try:
                return await write()
            except RedisError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)

    async def _until_redis_answers(self, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await call()
            except RedisError as error:
                log.warning("waiting for Redis at %s: %s", self.settings.redis_url, error)
                await asyncio.sleep(0.5)


def load_engine(settings: Settings) -> Engine:
    """The only place where the service meets the model."""
    if settings.engine == "fake":
        from server.fake_engine import FakeEngine

        return FakeEngine(settings.max_rows, settings.fake_step_ms / 1000)
    from model.checkpoint import CheckpointError
    from model.serving import load_engine as load

    try:
        return load(
            checkpoint_dir=settings.checkpoint,
            max_rows=settings.max_rows,
            device=settings.device,
            threads=settings.threads,
        )
    except CheckpointError as error:
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
