"""The HTTP gateway as a FastAPI app: middleware, error handlers, routes. It imports neither torch nor the model."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute

from server import __version__
from server.addresses import is_loopback
from server.background import stop_signals
from server.errors import ConfigError
from server.gateway.api_keys import KeyRing
from server.gateway.dependencies import Services
from server.gateway.lifespan import open_services
from server.gateway.middleware.auth import Authenticate
from server.gateway.middleware.body_limit import BodyLimit
from server.gateway.middleware.cors import allow_origins
from server.gateway.middleware.errors import UnhandledErrors, install_error_handlers
from server.gateway.middleware.head_requests import HeadRequests
from server.gateway.middleware.read_limit import ReadLimit
from server.gateway.middleware.request_context import RequestContext
from server.gateway.middleware.slow_clients import SlowClientTimeouts
from server.gateway.middleware.trusted_origins import TrustedOrigins, allowed_hosts
from server.gateway.requests.client_mapping import ClientMapping
from server.gateway.requests.multipart_form import keep_uploads_in_memory
from server.gateway.routes import batches, edits, files, images, job_events, jobs, openai_responses, operations
from server.gateway.schemas.openapi import ANY_ERROR, install_openapi
from server.gateway.webhooks import parse_secret
from server.settings import Settings
from server.storage.object_store import check_links
from server.telemetry.tracing import check_installed

log = logging.getLogger(__name__)
DESCRIPTION = """Text-to-image generation with a random-order, continuous-token autoregressive model.

`POST /v1/images/generations` is compatible with OpenAI's image API and waits for the images. `POST /v1/jobs` takes the
same request and returns at once. The same seed and parameters give the same image. The playground is at [/](/).
"""
ROUTERS = (images, edits, openai_responses, jobs, job_events, files, batches, operations)
OpenServices = Callable[[Settings], AbstractAsyncContextManager[Services]]


def create_app(settings: Settings, open_services: OpenServices = open_services) -> FastAPI:
    """Assemble the app; `open_services` is called when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings) as services:
            services.metrics.expect_requests(requests_counted())
            app.state.services = services
            yield

    ClientMapping.from_settings(settings)  # a wrong alias stops the start
    check_links(settings.results, settings.result_links)
    app = FastAPI(
        title="Fluid Serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        responses=ANY_ERROR,
        docs_url=None,  # FastAPI's pages load their scripts from a CDN; /docs is ours
        redoc_url=None,
    )
    keep_uploads_in_memory()
    # The last one is the outermost: requests that the others reject also get an id and are counted.
    app.add_middleware(BodyLimit, timeout_s=settings.body_timeout_s)
    app.add_middleware(
        Authenticate,
        ring=KeyRing(settings),
        metrics_access=settings.metrics_access,
        reads=ReadLimit(settings.read_rate_limit),
    )
    app.add_middleware(TrustedOrigins, settings=settings, hosts=allowed_hosts(settings))
    app.add_middleware(UnhandledErrors)
    allow_origins(app, settings.cors_origins)  # outside Authenticate: preflight requests carry no key
    app.add_middleware(RequestContext)
    app.add_middleware(HeadRequests)
    install_error_handlers(app)
    for module in ROUTERS:
        app.include_router(module.router)
    install_openapi(app)
    return app


def requests_counted() -> Iterator[tuple[str, str, int]]:
    """Yield (template of the path, method, status of success) of every route."""
    for module in ROUTERS:
        for route in module.router.routes:
            if isinstance(route, APIRoute):
                for method in route.methods or ():
                    yield route.path_format, method, route.status_code or 200


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; then stop accepting connections and let requests in flight finish.

    Raises:
        ConfigError: FLUID_REDIS_URL is empty, or FLUID_WEBHOOK_SECRET is malformed.
    """
    if not settings.redis_url:
        raise ConfigError("A gateway needs FLUID_REDIS_URL. To start everything, Redis included, run `fluid serve`.")
    parse_secret(settings.webhook_secret)
    check_installed(settings)
    if not is_loopback(settings.host) and not settings.wants_keys:
        log.warning(
            "LISTENING ON %s WITHOUT API KEYS: anyone who can reach this port can submit, read and cancel all jobs. "
            "Set FLUID_API_KEYS_FILE (see `fluid keys new NAME`), or listen on 127.0.0.1. Only loopback names "
            "are answered; FLUID_ALLOWED_HOSTS adds others.",
            settings.host,
        )
    if signal.SIGHUP in stop_signals():  # uvicorn handles the two others
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    uvicorn.run(
        create_app(settings),
        http=SlowClientTimeouts,
        host=settings.host,
        port=settings.port,
        log_config=None if settings.log_format == "json" else uvicorn.config.LOGGING_CONFIG,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        # Longer than the idle timeout of common load balancers (60 s): if the server closed first, a request that was
        # just being sent would fail.
        timeout_keep_alive=75,
    )
