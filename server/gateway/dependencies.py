"""`Services`: the queue, fleet, watcher, stores and metrics that routes share, as a FastAPI dependency."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from server.background import Supervisor
from server.gateway.batches.files import FileStore
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.responses.result_cache import ResultCache
from server.gateway.responses.sse import Streams
from server.gateway.signed_links import SignedLinks
from server.gateway.webhooks import Webhooks
from server.queue.events import Events
from server.queue.job_queue import JobQueue
from server.queue.registry import Registry
from server.queue.watcher import JobWatcher
from server.settings import Settings
from server.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that one gateway process opens once and its requests share."""

    settings: Settings
    queue: JobQueue
    registry: Registry
    fleet: Fleet
    watcher: JobWatcher
    events: Events
    webhooks: Webhooks
    files: FileStore
    batches: BatchStore
    metrics: GatewayMetrics
    supervisor: Supervisor
    streams: Streams
    links: SignedLinks
    tracing: Tracing
    result_cache: ResultCache

    @property
    def mapping(self) -> ClientMapping:
        """What names, sizes and formats of clients stand for, as of the fleet's last view of the models."""
        return self.fleet.mapping


def services_of(request: Request) -> Services:
    """Return the services of the app that received this request."""
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    """Return the services; async, because FastAPI runs a plain dependency in its thread pool on every request."""
    return services_of(request)


ServicesDep = Annotated[Services, Depends(_services)]
