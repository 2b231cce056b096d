"""The queue's promise under faults: no accepted job is lost, and none is visible twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.jobs import JobState

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("CHAOS_MINUTES", "3"))
MODES = ("failover", "half-open", "reload")
SEED = os.environ.get("CHAOS_SEED", "7")


@pytest.mark.skipif(sys.platform != "linux", reason="freezes and kills processes by their Linux signals")
def test_no_job_is_lost_while_every_process_is_killed() -> None:
    """Run `make chaos` briefly with every gate except the redelivery time, which a busy machine would fail.

    Also check that faults were injected at all, and that the figures add up.
    """
    command = [sys.executable, "-m", "benchmarks.chaos", "--minutes", str(MINUTES), "--seed", SEED, "--untimed"]
    command += ["--modes", ",".join(MODES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MINUTES * 60 + 300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["lost"], result["duplicates"], result["counters_inconsistent"], result["unasked_ends"]) == (
        0,
        0,
        0,
        0,
    )
    assert all(result["kills"][mode] > 0 for mode in MODES)
    assert result["submitted"] == sum(result[str(state)] for state in JobState if state.terminal)
    assert result["submitted"] > 100 * MINUTES and sum(result["kills"].values()) > 10 * MINUTES
    assert result["redeliveries"] > 0 and result["resumed_rows"] > 0
