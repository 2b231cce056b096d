"""The worker process: take jobs, admit rows, one step for every row, publish; drains on SIGTERM."""

import asyncio
import logging
import os
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Sequence

from redis.exceptions import RedisError

from server.background import running
from server.errors import EngineBroken
from server.images.compositing import Source
from server.jobs import JobError, JobState, Lease
from server.metrics import Tally
from server.model_info import ModelInfo
from server.queue import source_images
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.completion import Completion
from server.worker.engine.protocol import Engine
from server.worker.engine.thread import EngineThread
from server.worker.heartbeat import Heartbeat
from server.worker.held_job import HeldJob
from server.worker.leases import CancelListener, LeaseRenewer
from server.worker.publisher import Publisher
from server.worker.reload import Reloader
from server.worker.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore
from server.worker.watchdog import Watchdog

log = logging.getLogger(__name__)
IDLE_BLOCK_S = 0.25  # longest deafness to SIGTERM and to lapsed leases while there is nothing to do
PATIENCE_S = 0.25  # a job that has waited this long is one that no idle worker wants
RECLAIM_S = 0.25


class Worker:
    """One engine, one event loop. Redis may come and go; the engine's failures stay with their job."""

    def __init__(
        self, settings: Settings, queue: LeaseQueue, registry: Registry, factory: Callable[[str], Engine]
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.registry = registry
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.thread = EngineThread(settings.snapshot_steps)
        self.held = Scheduler(settings.max_rows, settings.ageing_s)
        self.tally = Tally()
        self.heart = Heartbeat(self.id, registry, self.held, self.tally)
        self.pulse = LeaseRenewer(queue, self.held, settings.lease_s)
        self.cancels = CancelListener(queue, self.held)
        self.keeper = SnapshotStore(queue, self.thread, self.tally)
        self.ends = Completion(queue, self.thread, self.held, self.keeper, self.tally, settings.lease_s)
        self.publisher = Publisher(queue, self.ends, self.keeper, self.tally)
        self.watchdog = Watchdog(self.thread, self.ends, settings.step_timeout_s)
        self.reloader = Reloader(settings.checkpoint, registry, queue, self.heart, self._load)
        self._factory = factory
        self._drain_deadline: float | None = None
        self._reclaim_at = 0.0

    # --- life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        await self._until_redis_answers()
        try:
            helpers = (self.heart, self.pulse, self.cancels, self.watchdog)
            async with running(*(helper.forever() for helper in helpers)):
                await self._prepare()
                async with running(self.reloader.forever()):
                    await self._work()
        finally:
            await self._say_goodbye()

    async def _prepare(self) -> None:
        """Load, publish the model, draw the canary; only then is the worker ready."""
        began = time.monotonic()
        checkpoint = await self.ends.persist(self.reloader.checkpoint)
        thread, info = await self._load(checkpoint)
        await self._use(thread, info)
        self.heart.state, self.heart.note = "ready", ""
        self.tally.count("fluid_worker_starts_total")
        await self.heart.once()
        log.info(
            "ready: %s, %d rows, %s kernels on %s, after %.1f s",
            info.id,
            self.held.max_rows,
            thread.kernels,
            thread.device,
            time.monotonic() - began,
        )

    async def _load(self, checkpoint: str) -> tuple[EngineThread, ModelInfo]:
        """An engine on a thread of its own that has drawn its canary picture."""
        thread = EngineThread(self.settings.snapshot_steps)
        info = await thread.load(lambda: self._factory(checkpoint))
        if self.heart.model is None:
            self.heart.note = "drawing its canary picture"
            self.watchdog.thread = thread
        began = time.monotonic()
        steps = await thread.canary(info)
        self.heart.speed.saw(steps, time.monotonic() - began)  # a first guess, until there is real work
        return thread, info

    async def _use(self, thread: EngineThread, info: ModelInfo) -> None:
        await self.ends.persist(lambda: self.registry.publish_model(info))
        self.thread.close()
        self.thread = self.ends.thread = self.keeper.thread = self.watchdog.thread = thread
        self.heart.model = self.publisher.model = info
        self.heart.kernels, self.heart.device = thread.kernels, thread.device
        self.keeper.checkpoint = info.checkpoint_sha256
        self.model, self.info = info.id, info

    async def _work(self) -> None:
        while not (self.draining and not self.held.works and not self.publisher.running):
            try:
                await self._drain_if_asked()
                await self._swap_if_loaded()
                await self._take()
                await self.ends.drop_ended()
                await self._admit()
                await self._step()
            except RedisError as error:
                log.warning("Redis: %s; trying again", error)
                await asyncio.sleep(0.2)
            except EngineBroken as error:
                await self.ends.give_everything_back(JobError("engine_broken", str(error)))
                raise

    # --- the four verbs -------------------------------------------------------------------------------

    async def _take(self) -> None:
        if self.taking and self.held.room() > 0:
            await self._reclaim()
            while self.held.room() > 0:
                found = await self.queue.take(self.id, self.model, block_s=None if self.held.busy else IDLE_BLOCK_S)
                if found is None:
                    return
                await self._hold(found)
        elif self.taking and self.held.saturated():
            found = await self.queue.take(self.id, self.model, min_wait_s=PATIENCE_S)
            if found is not None:
                await self._hold(found)
        elif not self.held.busy and self.publisher.running:
            # Without a row and without room nothing below would wait, and a loop that never waits
            # starves the very tasks that are to end it.
            await asyncio.wait(self.publisher.running, return_when=asyncio.FIRST_COMPLETED)

    async def _admit(self) -> None:
        images = self.held.next_images(time.monotonic())
        for work, index in [image for image in images if image[1] in image[0].snapshots]:
            if work.closing or await self._restore(work, index):
                images.remove((work, index))
        images = [image for image in images if not image[0].closing]
        if images:
            await self._admit_images(images)

    async def _step(self) -> None:
        rows = self.held.rows
        if not rows:
            return
        began = time.monotonic()
        try:
            outcome = await self.thread.step({row: work.preview_steps for row, work in rows.items()})
        except Exception as error:
            log.exception("the engine failed in a step of %d rows", len(rows))
            await self.ends.engine_failed("ar_step", error, self.held.active, len(rows))
            return
        self.heart.speed.saw(len(rows), time.monotonic() - began)
        self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "ar_step")
        self.tally.observe("fluid_batch_size", len(rows))
        for row, work in rows.items():
            work.batch_peak = max(work.batch_peak, len(rows))
            if row in outcome.progress:
                work.steps_done[work.rows[row]] = outcome.progress[row]
        for row, pixels in outcome.previews.items():
            self.publisher.show(rows[row], rows[row].rows[row], outcome.progress[row], pixels)
        self.keeper.keep(rows, outcome.snapshots)
        for row, pixels in outcome.images.items():
            work = rows[row]
            index = self.held.unseat(work, row, again=False)
            work.steps_done[index] = work.lease.input.sampling.num_inference_steps
            work.predict_s = time.monotonic() - work.taken_at
            self.publisher.start(work, index, pixels)
        # All of them off their rows first: what fails one image of a job frees the rows of all its others.
        for row in outcome.failures:
            self.held.unseat(rows[row], row, again=True)
        for work, failure in {rows[row]: failure for row, failure in outcome.failures.items()}.items():
            await self.ends.engine_failed("image", failure, [work], 1)

    # --- their helpers --------------------------------------------------------------------------------

    @property
    def taking(self) -> bool:
        return not self.draining and self.reloader.ready is None

    async def _reclaim(self) -> None:
        """One at a time: a job of many images, or a suspect, may leave no room for a second."""
        while self.held.room() > 0 and time.monotonic() >= self._reclaim_at:
            held = [work.lease.job_id for work in self.held.works.values() if not work.lost]
            leases = await self.queue.reclaim(self.id, self.model, held, count=1)
            if not leases:
                self._reclaim_at = time.monotonic() + RECLAIM_S
            for lease in leases:
                await self._hold(lease)

    async def _hold(self, lease: Lease) -> None:
        work = self.held.add(lease, time.monotonic())
        self.tally.observe("fluid_queue_wait_seconds", lease.started_at - lease.created_at)
        if lease.input.edit is not None and not await self._fetch_source(work):
            return
        await self.ends.persist(lambda: self.keeper.recall(work))
        if work.drawn:  # the earlier try was lost between its last picture and its end
            await self.ends.finish(work, JobState.SUCCEEDED)

    async def _fetch_source(self, work: HeldJob) -> bool:
        """The picture that an edit starts from. False: there is none, and no other try would find one."""
        data = await self.ends.persist(lambda: source_images.load(self.queue, work.lease.input))
        try:
            if data is None:
                raise ValueError("the picture to start from is gone; send the request again")
            work.source = Source.unpack(data, work.lease.input, self.info)
        except (ValueError, zlib.error) as error:
            await self.ends.refuse(work, str(error))
            return False
        return True

    async def _restore(self, work: HeldJob, index: int) -> bool:
        """Seat an image where its snapshot was taken. False: it has to begin anew."""
        state = work.snapshots.pop(index)
        try:
            row, done, work.prompt_tokens = await self.thread.restore(work.request(index), state)
        except ValueError as error:
            log.warning("a snapshot of %s does not fit, the image begins anew: %s", work.lease.job_id, error)
            return False
        except Exception as error:
            log.exception("the engine failed to restore an image of %s", work.lease.job_id)
            await self.ends.engine_failed("restore", error, [work], 1)
            return True
        self.held.seat(work, index, row)
        work.steps_done[index] = done
        self.tally.count("fluid_resumed_rows_total")
        return True

    async def _admit_images(self, images: Sequence[tuple[HeldJob, int]]) -> None:
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
            await self.ends.engine_failed("admit", error, works, len(images))
        else:
            self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "admit")
            for (work, index), (row, work.prompt_tokens) in zip(images, rows, strict=True):
                self.held.seat(work, index, row)

    # --- another checkpoint ---------------------------------------------------------------------------

    async def _swap_if_loaded(self) -> None:
        """A job is drawn with one checkpoint: those begun finish on the old engine, the rest goes back in line."""
        loaded = self.reloader.ready
        if loaded is None:
            return
        for work in list(self.held.works.values()):
            if not work.started and not work.closing:
                await self.ends.give_back(work, None)
        if self.held.works or self.publisher.running:
            return
        await self._use(loaded.thread, loaded.info)
        self.heart.note, self.heart.reloads = "", loaded.request.number
        self.reloader.ready = None
        self.tally.count("fluid_reloads_total")
        log.info("reload %d: drawing with %s", loaded.request.number, loaded.info.checkpoint_sha256[:12])
        await self.heart.once()

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
        log.info("draining: %d jobs held", len(self.held.works))

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    async def _drain_if_asked(self) -> None:
        if self._drain_deadline is None:
            return
        if time.monotonic() >= self._drain_deadline:
            await self.ends.give_everything_back(None)
        for work in list(self.held.works.values()):
            if not work.started and not work.closing:
                await self.ends.give_back(work, None)

    async def _say_goodbye(self) -> None:
        self.thread.close()
        try:
            await self.heart.once()  # the last figures
            await self.registry.deregister(self.id)
        except RedisError as error:
            log.warning("leaving without a goodbye: %s", error)

    async def _until_redis_answers(self) -> None:
        while True:
            try:
                await self.queue.redis.ping()
                return
            except RedisError as error:
                log.warning("waiting for Redis at %s: %s", self.settings.redis_url, error)
                await asyncio.sleep(0.5)
