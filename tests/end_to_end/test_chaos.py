"""The promise, under fire: nothing accepted is lost, and nothing is seen twice."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from benchmarks.chaos.__main__ import passed, run

MINUTES = float(os.environ.get("CHAOS_MINUTES", "1"))  # .ci/run asks for 3


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """Real processes, real Valkey; the gates of `make chaos`. A minute also proves that the harness really hits."""
    result = asyncio.run(run(MINUTES, seed=7, data_dir=tmp_path))
    assert passed(result), result
    assert result["ordinary_failed"] == 0, result
    assert result["submitted"] > 100 * MINUTES and sum(result["kills"].values()) > 8 * MINUTES
    ends = ("succeeded", "failed", "canceled", "aborted")
    assert result["submitted"] == sum(result[state] for state in ends)
