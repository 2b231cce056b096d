"""What the routes share, as a FastAPI dependency: queue, fleet, watcher and metrics of one gateway."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from server.gateway.batches.files import Files
from server.gateway.batches.runner import Batches
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.webhooks import Webhooks
from server.queue.events import Events
from server.queue.job_queue import JobQueue
from server.queue.registry import Registry
from server.queue.watcher import JobWatcher
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    queue: JobQueue
    registry: Registry
    fleet: Fleet
    watcher: JobWatcher
    events: Events
    webhooks: Webhooks
    files: Files
    batches: Batches
    metrics: GatewayMetrics


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    """A coroutine, because FastAPI sends plain functions through a pool of threads, for every request."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
