"""The worker's loop: admit images to rows, publish what the engine's steps produce; drain on SIGTERM.

The engine steps on its own thread and jobs are taken by a task of their own (taker.py), so that neither waits for
this loop. A pass of the loop follows whenever there is news from either.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from math import inf

from redis.exceptions import RedisError

from server.background import Crash, RepeatedFailure, Supervisor, wait_at_most
from server.errors import EngineBroken
from server.jobs import JobError
from server.metrics import Tally
from server.model_info import ModelInfo
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import outlast_outages
from server.queue.registry import Registry
from server.settings import Settings
from server.telemetry.tracing import OFF, Tracing
from server.worker.completion import Completion
from server.worker.engine.canary import canary_within
from server.worker.engine.protocol import Engine
from server.worker.engine.slot import EngineSlot
from server.worker.engine.thread import EngineThread
from server.worker.heartbeat import Heartbeat
from server.worker.intake import Intake
from server.worker.leases import CancelListener, LeaseRenewer
from server.worker.publisher import Publisher
from server.worker.reload import Reloader
from server.worker.results import ResultWriter
from server.worker.scheduling.preemption import PreemptionPolicy
from server.worker.scheduling.scheduler import Scheduler
from server.worker.snapshots import SnapshotStore
from server.worker.taker import Taker
from server.worker.watchdog import Watchdog

log = logging.getLogger(__name__)
TICK_S = 0.1  # longest time between two passes while images are generated; whatever needs one sooner rings the bell
IDLE_TICK_S = 0.25


class Worker:
    """One engine, one event loop. It survives an unreachable Redis; an engine's failure costs only the job at fault."""

    def __init__(
        self,
        settings: Settings,
        queue: LeaseQueue,
        registry: Registry,
        factory: Callable[[str], Engine],
        tracing: Tracing = OFF,
    ) -> None:
        """`factory` loads the engine for a checkpoint."""
        self.settings = settings
        self.queue = queue
        self.registry = registry
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._bell = asyncio.Event()  #: there is something for a pass of the loop
        ring = self._bell.set
        self.engine = EngineSlot(EngineThread(settings.snapshot_steps), ring)
        self.scheduler = Scheduler(settings.max_rows, settings.ageing_s)
        self.preemption = PreemptionPolicy(self.scheduler)
        self.tally = Tally()
        self.heartbeat = Heartbeat(self.id, registry, self.engine, self.scheduler, self.tally)
        self.heartbeat.configured = settings.checkpoint
        self.renewer = LeaseRenewer(queue, self.scheduler, settings.lease_s, self._note_progress, ring)
        self.cancel_listener = CancelListener(queue, self.scheduler, ring)
        self.snapshots = SnapshotStore(queue, self.engine, self.tally)
        self.results = ResultWriter(queue, self.tally, self.id, settings.lease_s)
        self.completion = Completion(
            queue, self.engine, self.scheduler, self.snapshots, self.results, self.tally, settings.lease_s, tracing
        )
        self.intake = Intake(queue, self.engine, self.scheduler, self.completion, self.snapshots, self.tally, ring)
        self.taker = Taker(
            self.id, queue, self.engine, self.scheduler, self.intake, self.preemption, lambda: self.taking
        )
        self.publisher = Publisher(
            queue, self.engine, self.scheduler, self.completion, self.snapshots, self.results, self.tally, ring
        )
        self.watchdog = Watchdog(self.engine, self.completion, settings.step_timeout_s, self.taker.stop)
        self.reloader = Reloader(settings.checkpoint, registry, queue, self.engine, self.heartbeat, self._load)
        self.supervisor = Supervisor(self._report_crash)
        self.heartbeat.impaired, self.heartbeat.reload_pending = self._impaired, self.reloader.pending
        self.heartbeat.advice = lambda: self.intake.note
        self._factory = factory
        self._outlast = partial(outlast_outages, queue.redis, settings.redis_url)
        self.hung_thread = False  #: a reload's engine hangs on a thread that cannot be ended
        self._drain_deadline: float | None = None

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
                "result store": self.results.run,
            }
            async with self.supervisor.running(helpers):
                await self._prepare()
                async with self.supervisor.running({"reloader": self.reloader.run, "job intake": self.taker.run}):
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
        """Load an engine and let it generate its canary image, on a thread of its own; the first one on the thread in
        the slot, where the watchdog sees it."""
        thread = EngineThread(self.settings.snapshot_steps) if self.engine.installed else self.engine.thread
        limit_s = inf if thread is self.engine.thread else self.settings.step_timeout_s
        try:
            info = await thread.load(lambda: self._factory(checkpoint), self.heartbeat.preparing)
            if not self.engine.installed:
                self.heartbeat.note = "generating its canary image"
            began = time.monotonic()
            steps = await canary_within(thread, info, limit_s)
        except BaseException as error:  # also a stop: the thread goes on to load weights, which cannot be interrupted
            if isinstance(error, Exception):
                self.tally.count("fluid_engine_failures_total", "canary" if thread.loaded else "load")
            self.hung_thread |= thread.hung or isinstance(error, asyncio.CancelledError)
            if self.engine.installed:
                thread.close()
            raise
        self.heartbeat.throughput.record(steps, time.monotonic() - began)  # a first guess, until there is real work
        return thread, info

    def _use(self, thread: EngineThread, info: ModelInfo) -> None:
        """Serve with this engine from now on. It may have fewer rows than FLUID_MAX_ROWS: images would wait without end
        for more of them than there are."""
        self.engine.install(thread, info)
        self.scheduler.max_rows = min(self.settings.max_rows, thread.engine.max_rows)

    async def _install(self, thread: EngineThread, info: ModelInfo) -> None:
        self._use(thread, info)
        await self._outlast(self.heartbeat.claim)

    async def _work(self) -> None:
        failure = RepeatedFailure(log)
        while not (self.draining and self._idle):
            try:
                await self._drain_if_asked()
                await self._swap_if_loaded()
                await self._pass()
                failure.over()
            except RedisError as error:
                failure.warn(f"Redis: {error}; trying again")
                await asyncio.sleep(0.2)
            except EngineBroken as error:
                await self.taker.stop()
                await self.completion.requeue_all(JobError("engine_broken", str(error)))
                raise
            await wait_at_most(self._bell, TICK_S if self.scheduler.busy or self.draining else IDLE_TICK_S)

    @property
    def _idle(self) -> bool:
        """No job is held or on its way here."""
        return not (self.scheduler.jobs or self.intake.running or self.publisher.running or self.taker.in_flight)

    # --- one pass: publish, admit ---------------------------------------------------------------------

    async def _pass(self) -> None:
        if self.intake.failures:
            raise self.intake.failures.pop(0)
        await self.publisher.publish_news()
        ending = self._note_progress()
        await self.completion.reap()
        self._admit(ending)
        if (preemption := self.preemption.choose(time.monotonic())) is not None:
            self.intake.preempt(preemption)
        self.taker.room.set()

    def _note_progress(self) -> Counter[int]:
        """Copy what the engine's thread has counted. Returns how many rows end in 1, 2, … steps, as far as their
        successors are to be made ready now."""
        table, ending = self.engine.thread.table, Counter[int]()
        for row, job in self.scheduler.rows.items():
            if (state := table.rows.get(row)) is not None:
                job.steps_done[job.rows[row]] = state.done
                if job.trace.sampled:
                    job.trace.step(job.rows[row], state.done)
                if (left := state.left) <= table.notice_steps:
                    ending[left] += 1
        self.scheduler.rows_ending = ending.total()
        while table.steps:
            seconds, rows = table.steps.popleft()
            self.heartbeat.throughput.record(rows, seconds)
            self.tally.observe("fluid_stage_duration_seconds", seconds, "ar_step")
            self.tally.observe("fluid_batch_size", rows)
        return ending

    def _admit(self, ending: Counter[int]) -> None:
        """Ask for rows: idle ones now, and those that end together when they end."""
        images = deque(self.scheduler.next_images(time.monotonic()))
        sizes = (max(0, self.scheduler.idle_rows), *(ending[left] for left in sorted(ending)), len(images))
        for size in sizes:
            if group := [images.popleft() for _ in range(min(size, len(images)))]:
                self.intake.admit(group)

    # --- helpers --------------------------------------------------------------------------------------

    @property
    def taking(self) -> bool:
        return not self.draining and not self.reloader.holds_back and self._impaired() is None

    def _impaired(self) -> tuple[str, str] | None:
        """The state in which this worker takes no jobs, and why; None if it is sound."""
        if failing := self.supervisor.failing:
            return "failing", "; ".join(map(str, failing))
        reason = self.heartbeat.conflict or self.results.trouble
        return ("waiting", reason) if reason else None

    async def _report_crash(self, crash: Crash) -> None:
        self.tally.count("fluid_worker_task_crashes_total", crash.task)
        await self.registry.report_crash(f"worker {self.id}", crash)

    # --- reload ---------------------------------------------------------------------------------------

    async def _swap_if_loaded(self) -> None:
        """Install the engine of a reload once the old one is idle. No job mixes two checkpoints: started ones finish
        on the old engine, the others are requeued."""
        loaded = self.reloader.ready
        if loaded is None or not self.reloader.holds_back:
            return
        await self._requeue_unstarted()
        if not self._idle or not await self.reloader.confirm(loaded):
            return
        self._use(loaded.thread, loaded.info)
        await self.completion.persist(self.heartbeat.beat)  # or other workers would take the new model for unserved
        await self.completion.persist(lambda: self.registry.finish_reload(loaded.request, loaded.info, loaded.replaces))
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
        self._bell.set()
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
        self.reloader.close()
        try:
            await self.heartbeat.beat()  # the last counters
            await self.registry.deregister(self.id)
        except RedisError as error:
            log.warning("cannot deregister: %s", error)
