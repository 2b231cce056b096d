"""What the routes share: queue, fleet, watcher and metrics of one gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from server.connection import QUICK_TIMEOUT_S, connect
from server.events import Events
from server.fleet import Fleet
from server.metrics import GatewayMetrics
from server.queue import Queue
from server.registry import Registry
from server.settings import Settings
from server.watcher import Watcher


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    queue: Queue
    registry: Registry
    fleet: Fleet
    watcher: Watcher
    events: Events
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Connects lazily: a gateway starts, and answers 503, while Redis is still away."""
    async with connect(settings.redis_url, QUICK_TIMEOUT_S) as redis:
        queue = Queue(redis, settings)
        registry = Registry(redis, settings.namespace)
        watcher = Watcher(redis, queue, settings.namespace)
        watcher.start()
        try:
            services = Services(settings, queue, registry, Fleet(registry), watcher, Events(queue, watcher))
            services.metrics.followers.set_function(lambda: watcher.followers)
            yield services
        finally:
            await watcher.stop()


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    """A coroutine, because FastAPI sends plain functions through a pool of threads, for every request."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
