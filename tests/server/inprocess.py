"""Serve an app in this process behind a real socket, for tests that patch it or read its log."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from server.cli.demo import free_port
from server.gateway.middleware.slow_clients import SlowClientTimeouts
from tests.server.harness import until


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Serve the app in a thread, and give the port it listens on."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, http=SlowClientTimeouts, port=port, log_level="error", lifespan="on"))
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),))
    thread.start()
    try:
        until(lambda: server.started, what="the gateway")
        yield port
    finally:
        server.should_exit = True
        thread.join(timeout=60)
