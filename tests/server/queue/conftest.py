"""A Valkey that a test may stop, fill or configure without others noticing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.launcher.embedded_valkey import EmbeddedValkey
from tests.server.conftest import quick_folder


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with quick_folder(tmp_path) as folder, EmbeddedValkey(folder / "valkey") as server:
        yield server
