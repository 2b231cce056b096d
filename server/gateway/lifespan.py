"""Open and close what a gateway process shares between requests, and run its background work."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.background import Crash, Supervisor
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import COMPLETION_WINDOW_S
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.dependencies import Services
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.queue_trouble import watch_redis, watch_store
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.responses.jobs import job_object
from server.gateway.responses.result_cache import ResultCache
from server.gateway.responses.sse import Streams
from server.gateway.signed_links import SignedLinks
from server.gateway.webhooks import Webhooks, parse_secret
from server.queue.events import Events
from server.queue.job_queue import JobQueue
from server.queue.redis_client import GATEWAY_SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.queue.watcher import JobWatcher
from server.settings import Settings
from server.telemetry.tracing import open_tracing


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the services and run webhooks and batches beside them.

    Redis is connected lazily: a gateway starts, and answers 503, while Redis is still unreachable.
    """
    async with connect(settings.redis_url, GATEWAY_SOCKET_TIMEOUT_S) as redis:
        queue = JobQueue(redis, settings)
        registry = Registry(redis, settings.namespace)
        watcher = JobWatcher(redis, queue, settings.namespace)
        fleet = Fleet(registry, settings.default_model, ClientMapping.from_settings(settings))
        metrics = GatewayMetrics()
        metrics.followers.set_function(lambda: watcher.followers)
        hooks = Webhooks(
            queue,
            parse_secret(settings.webhook_secret),
            private=settings.webhook_private == "allow",
            sent=metrics.webhooks,
            bugs=metrics.bugs,
        )
        files = FileStore(queue, settings.batch_ttl_s)
        batches = BatchStore(queue, files, settings.batch_ttl_s, settings.max_batches)
        tracing = open_tracing(settings, "gateway")
        runner = BatchRunner(queue, fleet, files, batches, settings.batch_ttl_s, metrics.bugs, tracing)
        events, streams = Events(queue, watcher), Streams(settings.max_streams, settings.max_key_streams)
        process = f"gateway {socket.gethostname()}-{os.getpid()}"

        async def report(crash: Crash) -> None:
            metrics.bugs.labels(crash.task).inc()
            await registry.report_crash(process, crash)

        supervisor = Supervisor(report)
        services = Services(
            settings,
            queue,
            registry,
            fleet,
            watcher,
            events,
            hooks,
            files,
            batches,
            metrics,
            supervisor,
            streams,
            SignedLinks(queue, settings.link_ttl_s, settings.wants_keys),
            tracing,
            ResultCache(settings.result_cache_s, metrics.registry),
        )

        async def job_as_json(job_id: str) -> dict[str, object]:
            return (await job_object(services, await queue.get(job_id))).model_dump()

        # A file for its time, then a batch that reads it for its own.
        longest_s = max(settings.result_ttl_s, COMPLETION_WINDOW_S + 2 * settings.batch_ttl_s)
        tasks = {
            "webhooks": lambda: hooks.run_forever(job_as_json),
            "batches": runner.run_forever,
            "redis": lambda: watch_redis(queue),
            "result store": lambda: watch_store(queue, longest_s),
            "streams": lambda: streams.report_forever(registry, process),
        }
        metrics.expect_tasks([*watcher.tasks, *tasks])
        try:
            async with supervisor.running({**watcher.tasks, **tasks}):
                yield services
        finally:
            await asyncio.to_thread(tracing.close)
