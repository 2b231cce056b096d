"""Loads another checkpoint without dropping a request (`fluid reload`).

The new engine is loaded beside the old one, generates its canary image there, and takes over when the rows of the old
one have finished; meanwhile jobs wait in the queue.
"""

import asyncio
import logging
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


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that has generated its canary image, and the request that asked for it."""

    thread: EngineThread
    info: ModelInfo
    request: ReloadRequest


class Reloader:
    """Beside the worker's loop: loads what `fluid reload` asks for; the loop installs it when it may."""

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
        self._configured = configured
        self._registry = registry
        self._queue = queue
        self._engine = engine
        self._heartbeat = heartbeat
        self._load = load

    async def checkpoint(self) -> str:
        """The checkpoint to start with: a worker that restarts after a crash must not undo a reload."""
        request = await self._registry.reload_request(self._configured)
        if request is None:
            return self._configured
        self._heartbeat.reloads = request.number
        return request.checkpoint

    async def run(self) -> None:
        """Poll for reload requests until canceled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                request = await self._registry.reload_request(self._configured)
            except RedisError as error:
                log.warning("cannot poll for a reload: %s", error)
                continue
            if request is not None and request.number > self._heartbeat.reloads and self.ready is None:
                await self._prepare(request)

    async def _prepare(self, request: ReloadRequest) -> None:
        log.info("reload %d: loading %s", request.number, request.checkpoint)
        self._heartbeat.note = ""  # an earlier reload's
        try:
            thread, info = await self._load(request.checkpoint)
            await self._check_waiting_jobs(info)
        except Exception as error:
            # Whatever it is, the present engine is as good as before, so it stays.
            log.exception("reload %d failed", request.number)
            self._heartbeat.note = f"reload {request.number} failed: {error or type(error).__name__}"
            self._heartbeat.reloads = request.number
            return
        self.ready = LoadedEngine(thread, info, request)

    async def _check_waiting_jobs(self, info: ModelInfo) -> None:
        """Jobs name their model; those that wait for the old one still need a worker that serves it."""
        old = self._engine.info
        if old.id == info.id:
            return
        others = [w for w in await self._registry.workers() if w.model == old.id and w.ready]
        waiting = (await queue_counts(self._queue)).waiting_work.get(old.id, 0)
        if waiting and len(others) < 2:
            raise ReloadRefused(
                f"Jobs wait for {old.id}, which no other live worker serves. Start one with it, or try again later."
            )
