"""Fixtures of all tests: a clean environment and reproducible hypothesis runs."""

import inspect
import os
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from server.cli import demo
from server.errors import RequestError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mar-repo", type=Path, help="a clone of github.com/LTH14/mar to compare with (needs timm and scipy)"
    )
    parser.addoption(
        "--nova-repo", type=Path, help="a clone of github.com/baaivision/NOVA to compare with (needs scipy and einops)"
    )


SERVICE_FIXTURES = {"service", "new_service", "live"}
#: Files and folders of tests that start processes by themselves.
SERVICE_TESTS = (
    "tests/benchmarks/test_",
    "tests/end_to_end/",
    "tests/server/cli/",
    "tests/server/gateway/middleware/test_cors_and_logs.py",
    "tests/server/images/test_recipe.py",
    "tests/server/launcher/",
    "tests/server/worker/test_crash.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes of the service, by the fixtures that do or by their file."""
    for item in items:
        if SERVICE_FIXTURES & set(getattr(item, "fixturenames", ())) or item.nodeid.startswith(SERVICE_TESTS):
            item.add_marker(pytest.mark.service)


settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_environment() -> None:
    """Remove the developer's own FLUID_* variables, which would change the settings under test."""
    for name in [name for name in os.environ if name.startswith("FLUID_")]:
        del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _ports_of_its_own() -> None:
    """Share the ports out among xdist's processes: two could choose one before either listens on it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    demo.PORTS //= int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    demo.FIRST_PORT += worker * demo.PORTS


HTTP_TIMEOUT_S = 60.0


@pytest.fixture(scope="session", autouse=True)
def _patient_http() -> None:
    """Give each httpx call without `timeout=` a minute: a stall of a busy machine outlasts the 5 s of httpx.

    All functions and clients of httpx share the one object that this changes.
    """
    shared = inspect.signature(httpx.get).parameters["timeout"].default
    shared.connect = shared.read = shared.write = shared.pool = HTTP_TIMEOUT_S
    assert httpx.Client().timeout == httpx.AsyncClient().timeout == httpx.Timeout(HTTP_TIMEOUT_S)


@pytest.fixture(scope="session")
def request_errors() -> set[type[RequestError]]:
    """Return every error that a caller can get as a response."""

    def below(cls: type[RequestError]) -> set[type[RequestError]]:
        return {each for sub in cls.__subclasses__() for each in {sub, *below(sub)}}

    return below(RequestError)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
