"""The simulation of one cell agrees with what queueing theory says exactly, and loses no job."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from random import Random

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import simulation
from benchmarks.scaling.model import BUSY, Costs, Fleet, end_of_one_redis, utilisation
from benchmarks.scaling.simulation import Simulation

FREE = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_redis_is_a_queue_with_random_arrivals_and_a_fixed_service_time() -> None:
    """The mean wait of M/D/1 is known: load * service / (2 * (1 - load)), here 1.17 ms beside 1 ms of service."""
    random, server, at, times = Random(1), simulation.Server(), 0.0, []
    for _ in range(100_000):
        at += random.expovariate(700.0)
        times.append((server.serve(at, 0.001) - at) * 1000)
    assert statistics.mean(times) == pytest.approx(1 + 0.7 / (2 * 0.3), rel=0.05)


def test_without_other_jobs_a_job_takes_the_sum_of_its_parts() -> None:
    costs = Costs(100.0, 200.0, 300.0, 0.0, 0.0, 1.0, 2.0)
    found = Simulation(costs, Fleet(1, 1, steps=10, step_ms=10.0), 0.2, 500.0).run()
    assert found.latency_p50_ms == pytest.approx(100 + 0.6 + 3, abs=0.01)
    assert found.waited_p50_ms == pytest.approx(1 + 0.1 + 0.2, abs=0.01)


def test_workers_at_their_limit_lose_at_most_a_step_of_each_job() -> None:
    fleet = Fleet(1, 10)
    found = Simulation(FREE, fleet, 2 * fleet.jobs_per_s, 120.0).run()
    assert 0.95 <= found.jobs_per_s / fleet.jobs_per_s <= 1.0


def test_no_job_is_lost_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "WARM_UP", 0.0)
    fleet = Fleet(1, 10, losses_per_hour=120.0, restart_s=5.0)
    run = Simulation(FREE, fleet, 0.5 * fleet.jobs_per_s, 300.0)
    found = run.run()
    assert found.redelivered > 20
    waiting_for_a_lease = sum(kind == "lapsed" for _, _, kind, _, _ in run._events)
    on_their_way = sum(kind in ("enqueue", "queued", "respond") for _, _, kind, _, _ in run._events)
    running = sum(len(worker.running) for worker in run._workers)
    assert found.ended + found.left + running + waiting_for_a_lease + on_their_way == len(run._jobs)


def test_the_end_of_one_redis_is_where_it_is_busy() -> None:
    costs = Costs(300.0, 300.0, 300.0, 100.0, 100.0, 1.0, 1.0)
    per_s, fleet = end_of_one_redis(costs)
    assert utilisation(costs, fleet, per_s) == pytest.approx(BUSY, abs=0.01)


def test_the_figures_are_small_and_the_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--quick"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["limits"]["one_redis_jobs_per_s"] > 100
    measured = json.loads(scaling.MEASURED.read_text())
    scaling.save_figures(result, measured, Costs.read(), tmp_path)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sorted(sizes) == ["scaling-latency.svg", "scaling-workers.svg"] and max(sizes.values()) <= 12_000
