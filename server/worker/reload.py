"""Loads another checkpoint without dropping a request (`fluid reload`).

The new engine is loaded beside the old one, generates its canary image there, and takes over when the rows of the old
one have finished; meanwhile jobs wait in the queue.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from server.errors import ReloadRefused
from server.model_info import ModelInfo
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry, ReloadRequest
from server.queue.statistics import queue_counts
from server.worker.engine.slot import EngineSlot
from server.worker.engine.thread import EngineThread
from server.worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)
POLL_S = 0.5
PATIENCE_S = 60.0  # a loaded engine waits so long for jobs of the model that it replaces
RETRY_S = 2.0  # the old engine serves these jobs, before the worker lets its rows run empty again


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that has generated its canary image, and the request that asked for it."""

    thread: EngineThread
    info: ModelInfo
    request: ReloadRequest
    replaces: str  #: id of the model that is served until then
    give_up_at: float  #: by time.monotonic()


class Reloader:
    """Loads, beside the worker's loop, what `fluid reload` asks for; the loop installs it when it can."""

    def __init__(
        self,
        configured: str,
        registry: Registry,
        queue: LeaseQueue,
        engine: EngineSlot,
        heartbeat: Heartbeat,
        load: Callable[[str], Awaitable[tuple[EngineThread, ModelInfo]]],
    ) -> None:
        self.ready: LoadedEngine | None = None
        self._retry_at = 0.0  #: by time.monotonic()
        self._tried = 0  #: number of the last request that this process has tried or started with
        self._configured = configured
        self._registry = registry
        self._queue = queue
        self._engine = engine
        self._heartbeat = heartbeat
        self._load = load

    @property
    def holds_back(self) -> bool:
        """True while the worker takes no jobs for the old engine, so that the loaded one can take over."""
        return self.ready is not None and time.monotonic() >= self._retry_at

    async def checkpoint(self) -> str:
        """The checkpoint to start with: a worker that restarts after a crash must not undo a reload.

        A request counts once a worker has carried it out. One that has been tried without success is not tried again
        at every start; it is adopted later if another worker succeeds.
        """
        done = await self._registry.last_reload(self._configured)
        request = await self._registry.reload_request(self._configured)
        self._tried = self._heartbeat.reloads = done.number if done else 0
        if request is not None and self._tried < request.number <= await self._registry.begun_reload(self._configured):
            log.warning(
                "reload %d to %s has not succeeded so far; starting without it", request.number, request.checkpoint
            )
            self._heartbeat.reloads = request.number
        return done.checkpoint if done else self._configured

    async def load_first(self, checkpoint: str) -> tuple[EngineThread, ModelInfo]:
        """Load the engine to start with: `checkpoint`, or else the configured one, which the heartbeat then tells."""
        try:
            loaded, note = await self._load(checkpoint), ""
        except Exception as error:
            if checkpoint == self._configured:
                raise
            log.exception("cannot load %s of the last reload; loading the configured %s", checkpoint, self._configured)
            loaded = await self._load(self._configured)
            reason = str(error) or type(error).__name__
            note = f"serving the configured {self._configured}: cannot load {checkpoint} of the last reload ({reason})"
        self._heartbeat.note = note
        return loaded

    async def run(self) -> None:
        """Poll for reload requests until canceled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                request = await self._registry.reload_request(self._configured)
                done = await self._registry.last_reload(self._configured)
            except RedisError as error:
                log.warning("cannot poll for a reload: %s", error)
                continue
            wanted: ReloadRequest | None
            if request is not None and request.number > self._heartbeat.reloads:
                wanted = request
            else:  # what another worker has carried out while this one started
                wanted = done if done is not None and done.number > self._tried else None
            if wanted is not None and self.ready is None:
                await self._prepare(wanted)

    async def pending(self) -> bool:
        """True while a reload rolls through the workers and has not come to this one."""
        request = await self._registry.reload_request(self._configured)
        done = await self._registry.last_reload(self._configured)
        newest = max(request.number if request else 0, done.number if done else 0)
        return newest > self._heartbeat.reloads or (done is not None and done.number > self._tried)

    async def _prepare(self, request: ReloadRequest) -> None:
        log.info("reload %d: loading %s", request.number, request.checkpoint)
        self._heartbeat.note = ""  # an earlier reload's
        self._tried = request.number
        try:
            await self._registry.begin_reload(request)
            thread, info = await self._load(request.checkpoint)
        except Exception as error:
            # Whatever failed, the current engine still works, so it stays.
            log.exception("reload %d failed", request.number)
            self._give_up(request, error)
            return
        self.ready = LoadedEngine(thread, info, request, self._engine.info.id, time.monotonic() + PATIENCE_S)

    def close(self) -> None:
        """End the thread of an engine that has not taken over; the interpreter would wait for it at exit."""
        if self.ready is not None:
            self.ready.thread.close()

    async def confirm(self, loaded: LoadedEngine) -> bool:
        """Return true if the idle worker may install what it has loaded.

        Jobs may wait that need the old engine: this worker has requeued them, or they have come. Then it serves on for
        RETRY_S at a time, and gives the reload up after PATIENCE_S.
        """
        try:
            await self._check_waiting_jobs(loaded.info)
        except ReloadRefused as error:
            if (now := time.monotonic()) < loaded.give_up_at:
                self._retry_at = now + RETRY_S
                self._heartbeat.note = f"reload {loaded.request.number} waits: {error}"
                return False
            loaded.thread.close()
            log.error("reload %d failed: %s", loaded.request.number, error)
            self._give_up(loaded.request, error)
            self.ready = None
        return self.ready is not None

    def _give_up(self, request: ReloadRequest, error: Exception) -> None:
        self._heartbeat.note = f"reload {request.number} failed: {error or type(error).__name__}"
        self._heartbeat.reloads = max(self._heartbeat.reloads, request.number)

    async def _check_waiting_jobs(self, info: ModelInfo) -> None:
        """Jobs name their model; those that wait for the old one still need a worker that serves it.

        Workers with the same FLUID_CHECKPOINT reload as well. This one runs no jobs: if it is the last of the old
        model, a lease is a dead worker's, and its job will wait.

        Raises:
            ReloadRefused: such jobs wait.
        """
        old = self._engine.info
        if old.id == info.id:
            return
        serving = [w for w in await self._registry.workers() if w.model == old.id and w.ready]
        if any(w.configured != self._configured for w in serving):
            return
        counts = await queue_counts(self._queue)
        lost = len(serving) < 2 and counts.leases_by_model.get(old.id)
        if counts.waiting_work.get(old.id) or lost:
            raise ReloadRefused(
                f"Jobs wait for {old.id}, and no live worker of another FLUID_CHECKPOINT serves it. Start one, or try "
                "again when fewer requests come."
            )
