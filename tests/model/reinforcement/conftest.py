"""One thread for training at test size: more only slow down products this small, fiftyfold on a busy machine."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def every_test_has_one_thread(one_thread: None) -> None:
    """Applies the fixture to the whole folder."""
