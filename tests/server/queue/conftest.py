"""A Valkey that a test may stop, fill or configure without others noticing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.launcher.embedded_valkey import EmbeddedValkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server
