"""Batches on a queue of their own, and what advances them."""

from __future__ import annotations

import pytest

from server.gateway.batches.files import FileStore
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.queue.job_queue import JobQueue
from server.queue.registry import Registry


@pytest.fixture
def store(queue: JobQueue) -> BatchStore:
    return BatchStore(queue, FileStore(queue, 3600), 3600)


@pytest.fixture
def runner(queue: JobQueue, store: BatchStore) -> BatchRunner:
    fleet = Fleet(Registry(queue.redis, queue.keys.namespace))
    return BatchRunner(queue, fleet, FileStore(queue, 3600), store, 3600, GatewayMetrics().bugs)
