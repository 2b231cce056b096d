"""The worker's loop: take jobs, admit rows, run one step for every row, publish; drain on SIGTERM."""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf

from redis.exceptions import RedisError

from server.background import Crash, Supervisor
from server.errors import EngineBroken
from server.jobs import JobError
from server.metrics import Tally
from server.model_info import ModelInfo
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import outlast_outages
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.completion import Completion
from server.worker.engine.canary import canary_within
from server.worker.engine.protocol import Engine
from server.worker.engine.slot import EngineSlot
from server.worker.engine.thread import EngineThread, StepOutcome
from server.worker.heartbeat import Heartbeat
from server.worker.held_job import HeldJob
from server.worker.intake import Intake
from server.worker.leases import CancelListener, LeaseRenewer
from server.worker.publisher import Publisher
from server.worker.reload import Reloader
from server.worker.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore
from server.worker.watchdog import Watchdog

log = logging.getLogger(__name__)
IDLE_BLOCK_S = 0.25  # longest wait without noticing SIGTERM or expired leases while there is nothing to do
MIN_WAIT_S = 0.25  # a job that has waited this long is one that no idle worker wants
RECLAIM_S = 0.25


class Worker:
    """One engine, one event loop. It survives an unreachable Redis; an engine's failure costs only the job at fault."""

    def __init__(
        self, settings: Settings, queue: LeaseQueue, registry: Registry, factory: Callable[[str], Engine]
    ) -> None:
        """`factory` loads the engine for a checkpoint."""
        self.settings = settings
        self.queue = queue
        self.registry = registry
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.engine = EngineSlot(EngineThread(settings.snapshot_steps))
        self.scheduler = Scheduler(settings.max_rows, settings.ageing_s)
        self.tally = Tally()
        self.heartbeat = Heartbeat(self.id, registry, self.engine, self.scheduler, self.tally)
        self.renewer = LeaseRenewer(queue, self.scheduler, settings.lease_s)
        self.cancel_listener = CancelListener(queue, self.scheduler)
        self.snapshots = SnapshotStore(queue, self.engine, self.tally)
        self.completion = Completion(queue, self.engine, self.scheduler, self.snapshots, self.tally, settings.lease_s)
        self.intake = Intake(queue, self.engine, self.scheduler, self.completion, self.snapshots, self.tally)
        self.publisher = Publisher(queue, self.engine, self.completion, self.snapshots, self.tally)
        self.watchdog = Watchdog(self.engine, self.completion, settings.step_timeout_s)
        self.reloader = Reloader(settings.checkpoint, registry, queue, self.engine, self.heartbeat, self._load)
        self.supervisor = Supervisor(self._report_crash)
        self.heartbeat.impaired, self.heartbeat.reload_pending = self._impaired, self.reloader.pending
        self._factory = factory
        self._outlast = partial(outlast_outages, queue.redis, settings.redis_url)
        self.hung_thread = False  #: a reload's engine hangs on a thread that cannot be ended
        self._drain_deadline: float | None = None
        self._reclaim_at = 0.0

    # --- lifecycle ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until drained. Raises EngineBroken when only a new process can help."""
        await self._outlast(self.queue.redis.ping)
        try:
            helpers = {
                "heartbeat": self.heartbeat.run,
                "lease renewal": self.renewer.run,
                "cancel listener": self.cancel_listener.run,
                "watchdog": self.watchdog.run,
            }
            async with self.supervisor.running(helpers):
                await self._prepare()
                async with self.supervisor.running({"reloader": self.reloader.run}):
                    await self._work()
        finally:
            await self._deregister()

    async def _prepare(self) -> None:
        """Load, generate the canary image, publish the model; only then is the worker ready."""
        began = time.monotonic()
        checkpoint = await self._outlast(self.reloader.checkpoint)
        await self._install(*await self.reloader.load_first(checkpoint))
        self.heartbeat.state = "ready"
        self.tally.count("fluid_worker_starts_total")
        await self._outlast(self.heartbeat.beat)
        log.info(
            "ready: %s, %d rows, %s kernels on %s, after %.1f s",
            self.engine.info.id,
            self.scheduler.max_rows,
            self.engine.thread.kernels,
            self.engine.thread.device,
            time.monotonic() - began,
        )

    async def _load(self, checkpoint: str) -> tuple[EngineThread, ModelInfo]:
        """Load an engine on a thread of its own and let it generate its canary image.

        The first one uses the thread that is in the slot already, where the watchdog sees it.
        """
        thread = EngineThread(self.settings.snapshot_steps) if self.engine.installed else self.engine.thread
        limit_s = inf if thread is self.engine.thread else self.settings.step_timeout_s
        try:
            info = await thread.load(lambda: self._factory(checkpoint))
            if not self.engine.installed:
                self.heartbeat.note = "generating its canary image"
            began = time.monotonic()
            steps = await canary_within(thread, info, limit_s)
        except Exception:
            self.tally.count("fluid_engine_failures_total", "canary" if thread.loaded else "load")
            self.hung_thread |= thread.hung
            if self.engine.installed:
                thread.close()
            raise
        self.heartbeat.throughput.record(steps, time.monotonic() - began)  # a first guess, until there is real work
        return thread, info

    async def _install(self, thread: EngineThread, info: ModelInfo) -> None:
        self.engine.install(thread, info)
        await self._outlast(self.heartbeat.claim)

    async def _work(self) -> None:
        failure = ""  # of Redis, logged when it changes
        while not (self.draining and not self.scheduler.jobs and not self.publisher.running):
            try:
                await self._drain_if_asked()
                await self._swap_if_loaded()
                await self._take()
                await self.completion.reap()
                await self._admit()
                await self._step()
                failure = ""
            except RedisError as error:
                if str(error) != failure:
                    log.warning("Redis: %s; trying again", error)
                failure = str(error)
                await asyncio.sleep(0.2)
            except EngineBroken as error:
                await self.completion.requeue_all(JobError("engine_broken", str(error)))
                raise

    # --- take, admit, step, publish -------------------------------------------------------------------

    async def _take(self) -> None:
        """Lease as many jobs as there is room for; block only while there is nothing to do."""
        model = self.engine.info.id
        if self.taking and self.scheduler.room() > 0:
            await self._reclaim()
            while self.scheduler.room() > 0:
                lease = await self.queue.take(self.id, model, block_s=None if self.scheduler.busy else IDLE_BLOCK_S)
                if lease is None:
                    return
                await self.intake.accept_lease(lease)
        elif self.taking and self.scheduler.saturated():
            lease = await self.queue.take(self.id, model, min_wait_s=MIN_WAIT_S)
            if lease is not None:
                await self.intake.accept_lease(lease)
        elif not self.scheduler.busy and self.publisher.running:
            # Nothing below would wait, and a loop that never waits starves the very tasks that should end it.
            await asyncio.wait(self.publisher.running, return_when=asyncio.FIRST_COMPLETED)
        elif not self.scheduler.busy and not self.draining:
            await asyncio.sleep(IDLE_BLOCK_S)  # as if it had waited for a job

    async def _admit(self) -> None:
        """Fill the free rows."""
        await self.intake.admit(self.scheduler.next_images(time.monotonic()))

    async def _step(self) -> None:
        """Run one step for every row."""
        rows = self.scheduler.rows
        if not rows:
            return
        began = time.monotonic()
        try:
            outcome = await self.engine.thread.step({row: job.preview_steps for row, job in rows.items()})
        except Exception as error:
            log.exception("the engine failed in a step of %d rows", len(rows))
            await self.completion.isolate_failure("ar_step", error, self.scheduler.active, len(rows))
            return
        self.heartbeat.throughput.record(len(rows), time.monotonic() - began)
        self.tally.observe("fluid_stage_duration_seconds", time.monotonic() - began, "ar_step")
        self.tally.observe("fluid_batch_size", len(rows))
        for row, job in rows.items():
            job.batch_peak = max(job.batch_peak, len(rows))
            if row in outcome.progress:
                job.steps_done[job.rows[row]] = outcome.progress[row]
        await self._publish(rows, outcome)

    async def _publish(self, rows: Mapping[int, HeldJob], outcome: StepOutcome) -> None:
        """Hand over what the step produced: previews, snapshots, finished images, and rows that failed."""
        for row, pixels in outcome.previews.items():
            self.publisher.preview(rows[row], rows[row].rows[row], outcome.progress[row], pixels)
        self.snapshots.save(rows, outcome.snapshots)
        for row, pixels in outcome.images.items():
            job = rows[row]
            index = self.scheduler.free_row(job, row, retry=False)
            job.steps_done[index] = job.lease.input.sampling.num_inference_steps
            job.predict_s = time.monotonic() - job.taken_at
            self.publisher.publish(job, index, pixels)
        # Take all of them off their rows first: a failed image frees the rows of its job's other images.
        for row in outcome.failures:
            self.scheduler.free_row(rows[row], row, retry=True)
        for job, failure in {rows[row]: failure for row, failure in outcome.failures.items()}.items():
            await self.completion.isolate_failure("image", failure, [job], 1)

    # --- helpers --------------------------------------------------------------------------------------

    @property
    def taking(self) -> bool:
        return not self.draining and self.reloader.ready is None and self._impaired() is None

    def _impaired(self) -> tuple[str, str] | None:
        """The state in which this worker takes no jobs, and why; None if it is sound."""
        if failing := self.supervisor.failing:
            return "failing", "; ".join(map(str, failing))
        return ("waiting", self.heartbeat.conflict) if self.heartbeat.conflict else None

    async def _report_crash(self, crash: Crash) -> None:
        self.tally.count("fluid_worker_task_crashes_total", crash.task)
        await self.registry.report_crash(f"worker {self.id}", crash)

    async def _reclaim(self) -> None:
        """Take over expired leases, one at a time: a job of many images, or a suspect, may leave no room for more."""
        while self.scheduler.room() > 0 and time.monotonic() >= self._reclaim_at:
            held = [job.lease.job_id for job in self.scheduler.jobs.values() if not job.lost]
            leases = await self.queue.reclaim(self.id, self.engine.info.id, held, count=1)
            if not leases:
                self._reclaim_at = time.monotonic() + RECLAIM_S
            for lease in leases:
                await self.intake.accept_lease(lease)

    # --- reload ---------------------------------------------------------------------------------------

    async def _swap_if_loaded(self) -> None:
        """Install the engine of a reload once the old one is idle. No job mixes two checkpoints: started ones finish
        on the old engine, the others are requeued."""
        loaded = self.reloader.ready
        if loaded is None:
            return
        await self._requeue_unstarted()
        if self.scheduler.jobs or self.publisher.running:
            return
        self.engine.install(loaded.thread, loaded.info)
        await self.completion.persist(lambda: self.registry.finish_reload(loaded.request, loaded.info))
        self.heartbeat.note, self.heartbeat.reloads = "", loaded.request.number
        self.reloader.ready = None
        self.tally.count("fluid_reloads_total")
        log.info("reload %d: now serving %s", loaded.request.number, loaded.info.checkpoint_sha256[:12])
        await self.heartbeat.beat()

    async def _requeue_unstarted(self) -> None:
        for job in list(self.scheduler.jobs.values()):
            if not job.started and not job.closing:
                await self.completion.requeue(job, None)

    # --- shutdown, and an unreachable Redis -----------------------------------------------------------

    def stop(self) -> None:
        """First call: drain. Second call: requeue everything now."""
        now = time.monotonic()
        self._drain_deadline = now if self.draining else now + self.settings.drain_s
        self.heartbeat.state = "draining"
        log.info("draining: %d jobs held", len(self.scheduler.jobs))

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    async def _drain_if_asked(self) -> None:
        if self._drain_deadline is None:
            return
        if time.monotonic() >= self._drain_deadline:
            await self.completion.requeue_all(None)
        await self._requeue_unstarted()

    async def _deregister(self) -> None:
        self.engine.thread.close()
        try:
            await self.heartbeat.beat()  # the last counters
            await self.registry.deregister(self.id)
        except RedisError as error:
            log.warning("cannot deregister: %s", error)
