"""A real Valkey for the session, a key namespace per test, and real service processes."""

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from server.cli.demo import free_port
from server.launcher.embedded_valkey import EmbeddedValkey
from server.model_info import ModelInfo
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE, FakeEngine
from tests.server.harness import PATIENCE_S, Hold, Service, running_service

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 1 << 30  # at least free there; containers often have 64 MB


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory where there is room: on a busy disk a single fsync outlasts what gateways wait."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="fluid-test-", dir=MEMORY if roomy else otherwise) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """One for the session."""
    with quick_folder(tmp_path_factory.getbasetemp()) as folder, EmbeddedValkey(folder) as server:
        yield server


def fake_settings(valkey: EmbeddedValkey) -> Settings:
    return Settings(redis_url=valkey.url, namespace=uuid.uuid4().hex, engine=FAKE_ENGINE, lease_s=1.0, port=free_port())


@pytest.fixture
def settings(valkey: EmbeddedValkey) -> Settings:
    return fake_settings(valkey)


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[JobQueue]:
    async with connect(settings.redis_url, SOCKET_TIMEOUT_S) as redis:
        await Registry(redis, settings.namespace).publish_model(ModelInfo.from_mapping(FakeEngine(1, 0).info()))
        yield JobQueue(redis, settings)


@pytest.fixture
def leases(queue: JobQueue, settings: Settings) -> LeaseQueue:
    """Leases that end when a test says so (`lapse`): not while its process stalls."""
    return LeaseQueue(queue.redis, replace(settings, lease_s=30.0))


@pytest.fixture(scope="session")
def service(valkey: EmbeddedValkey) -> Iterator[Service]:
    """A service shared by tests that only send requests."""
    with running_service(fake_settings(valkey)) as running:
        yield running


@pytest.fixture
def new_service(valkey: EmbeddedValkey) -> Iterator[Callable[..., Service]]:
    """Start a service that the test may kill: new_service(workers=1, fake_step_ms=20, ...)."""
    made: list[Service] = []

    def make(*, workers: int = 1, **changes: object) -> Service:
        service = Service(replace(fake_settings(valkey), **changes))  # type: ignore[arg-type]
        made.append(service)
        for _ in range(workers):
            service.add_worker()
        if workers:
            service.client.wait_ready(timeout_s=PATIENCE_S)
        return service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Jobs of `hold.prompt()` stop at half of their steps until `hold.release()`. Name it after `new_service`."""
    made = Hold(tmp_path)
    yield made
    made.release()
