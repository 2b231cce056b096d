"""Behind Sentinel and with FLUID_REPLICAS=1, the primary may die with its disk: nothing accepted is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.chaos.__main__ import main
from benchmarks.chaos.ledger import Ledger, Submission
from benchmarks.chaos.primary import losses


@pytest.mark.slow
def test_two_primaries_are_lost_under_load(tmp_path: Path) -> None:
    outcome = asyncio.run(losses.run(2, 1, 2.0, tmp_path))
    assert outcome.failures == []
    figures = outcome.figures
    assert (figures["losses"], figures["lost"], figures["duplicates"], figures["rolled_back"]) == (2, 0, 0, 0)
    assert isinstance(figures["succeeded"], int) and figures["succeeded"] > 0


def test_with_replicas_an_accepted_job_may_not_be_undone() -> None:
    ledgers = Ledger(), Ledger(replicated=True)
    accepted = list[set[str]]()
    for ledger in ledgers:
        entry = ledger.add(Submission("label", {}))
        with ledger.rollback():
            entry.observe_acceptance("job")
            entry.observe_state("job", "succeeded")
        assert entry.states == {}
        accepted.append(entry.accepted)
    assert accepted == [set(), {"job"}]


def test_the_mode_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--modes", "primary,failover"])
    assert "alone" in capsys.readouterr().err
