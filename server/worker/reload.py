"""`fluid reload`: another checkpoint without a dropped request. The new engine is loaded beside the old one, draws its
canary picture there, and takes over when the rows of the old one have finished; meanwhile jobs wait in their line."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from server.errors import FluidError, ReloadRefused
from server.model_info import ModelInfo
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry, ReloadRequest
from server.queue.statistics import queue_counts
from server.worker.engine.thread import EngineThread
from server.worker.heartbeat import Heartbeat

log = logging.getLogger(__name__)
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has drawn its canary picture, and the request that asked for it."""

    thread: EngineThread
    info: ModelInfo
    request: ReloadRequest


class Reloader:
    """Beside the worker's loop: loads what `fluid reload` asks for; the loop swaps when it may."""

    def __init__(
        self,
        configured: str,
        registry: Registry,
        queue: LeaseQueue,
        heart: Heartbeat,
        load: Callable[[str], Awaitable[tuple[EngineThread, ModelInfo]]],
    ) -> None:
        self.ready: Loaded | None = None
        self._configured = configured
        self._registry = registry
        self._queue = queue
        self._heart = heart
        self._load = load

    async def checkpoint(self) -> str:
        """What to load at the start: a worker that comes back after a crash must not undo a reload."""
        request = await self._registry.reload_request(self._configured)
        if request is None:
            return self._configured
        self._heart.reloads = request.number
        return request.checkpoint

    async def forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                request = await self._registry.reload_request(self._configured)
            except RedisError as error:
                log.warning("cannot look for a reload: %s", error)
                continue
            if request is not None and request.number > self._heart.reloads and self.ready is None:
                await self._prepare(request)

    async def _prepare(self, request: ReloadRequest) -> None:
        log.info("reload %d: loading %s", request.number, request.checkpoint)
        self._heart.note = ""  # that of an earlier one
        try:
            thread, info = await self._load(request.checkpoint)
            await self._check(info)
        except (FluidError, RedisError, OSError, ValueError, RuntimeError, MemoryError) as error:
            # The present engine is as good as before, so it goes on.
            log.exception("reload %d failed", request.number)
            self._heart.note = f"reload {request.number} failed: {error}"
            self._heart.reloads = request.number
            return
        self.ready = Loaded(thread, info, request)

    async def _check(self, info: ModelInfo) -> None:
        """Jobs name their model; those that wait for the old one must still find somebody."""
        old = self._heart.model
        if old is None or old.id == info.id:
            return
        others = [w for w in await self._registry.workers() if w.model == old.id and w.ready]
        waiting = (await queue_counts(self._queue)).waiting_work.get(old.id, 0)
        if waiting and len(others) < 2:
            raise ReloadRefused(
                f"Jobs wait for {old.id}, which no other live worker serves. Start one with it, or try again later."
            )
