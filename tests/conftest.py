"""Shared by all tests: a clean environment and reproducible hypothesis runs."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from server.errors import RequestError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mar-repo", type=Path, help="a clone of github.com/LTH14/mar (with timm and scipy installed) to compare with"
    )


settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> None:
    """A developer's own FLUID_* variables must not change what the tests see."""
    for name in [name for name in os.environ if name.startswith("FLUID_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def request_errors() -> set[type[RequestError]]:
    """Every error that a caller can be answered with."""

    def below(cls: type[RequestError]) -> set[type[RequestError]]:
        return {each for sub in cls.__subclasses__() for each in {sub, *below(sub)}}

    return below(RequestError)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
