"""Both sides of a queue whose images and uploads lie in a folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.mkdir()
    return path


@pytest.fixture
def stored(queue: JobQueue, settings: Settings, folder: Path) -> JobQueue:
    return JobQueue(queue.redis, replace(settings, results=folder.as_uri()))


@pytest.fixture
def stored_leases(queue: JobQueue, settings: Settings, folder: Path) -> LeaseQueue:
    return LeaseQueue(queue.redis, replace(settings, results=folder.as_uri()))
