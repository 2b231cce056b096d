"""Sweeps of the simulation: one Redis under more and more jobs, more and more workers, and workers that die."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.scaling.model import Costs, Fleet, background, cells_for, end_of_one_redis, fleet_for, utilisation
from benchmarks.scaling.simulation import Simulation

ARRIVALS = (10.0, 30.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 1000.0, 3000.0, 10_000.0)
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 5000, 10_000)
BUSY_WORKERS = 0.8
LOSSES = (0.0, 1.0, 10.0, 60.0)  # per hour of each worker
JOBS, QUICK_JOBS = 60_000, 2_000  # simulated per point, in 3 to SECONDS seconds
SECONDS = 120.0


def by_arrivals(costs: Costs, quick: bool) -> list[dict[str, Any]]:
    """Return a row per rate of arrivals, with workers that are 80 % busy and gateways that are half busy."""
    rows = []
    for per_s in ARRIVALS[:8:4] if quick else ARRIVALS:
        rows.append(_point(costs, fleet_for(costs, per_s, BUSY_WORKERS), per_s, quick))
    return rows


def by_workers(costs: Costs, quick: bool) -> list[dict[str, Any]]:
    """Return a row per number of workers, with a backlog that never runs empty: what leaves is the most that can.

    The gateways are enough for what Redis leaves; where it leaves nothing for jobs, the row has no jobs.
    """
    rows, most = [], 1e6 / costs.job_us
    for workers in WORKERS[:8:5] if quick else WORKERS:
        ideal = Fleet(1, workers).jobs_per_s
        fleet = Fleet(fleet_for(costs, min(ideal, most)).gateways, workers)
        rows.append(_point(costs, fleet, ideal, quick, callers=2 * fleet.rows * workers))
    return rows


def by_losses(costs: Costs, quick: bool) -> list[dict[str, Any]]:
    """Return a row per frequency of losses, with 200 jobs a second."""
    rows = []
    for losses in LOSSES[::3] if quick else LOSSES:
        fleet = fleet_for(costs, 200.0, BUSY_WORKERS, losses_per_hour=losses)
        rows.append({"losses_per_hour": losses, **_point(costs, fleet, 200.0, quick, 5)})
    return rows


def _point(
    costs: Costs, fleet: Fleet, per_s: float, quick: bool, longer: float = 1.0, callers: int = 0
) -> dict[str, Any]:
    seconds = max(3.0, min(SECONDS * longer, (QUICK_JOBS if quick else JOBS) / per_s))
    if callers:
        seconds = max(seconds, 8 * fleet.job_s)
    row = {"arrivals_per_s": round(per_s, 1), "workers": fleet.workers, "gateways": fleet.gateways}
    if background(costs, fleet) >= 1:
        return row | {"jobs_per_s": 0.0, "redis": round(background(costs, fleet), 3)}
    outcome = Simulation(costs, fleet, per_s, seconds, callers=callers).run()
    return {**row, "seconds": round(seconds, 1), **{name: round(value, 3) for name, value in asdict(outcome).items()}}


def check(costs: Costs, measured: dict[str, Any]) -> dict[str, float]:
    """Simulate what was measured with two gateways and eight workers, and return both with their ratio."""
    fleet = Fleet(
        measured["gateways"], measured["workers"], measured["rows"], measured["steps"], measured["measured_step_ms"]
    )
    found = Simulation(costs, fleet, measured["per_s"], max(600.0, measured["seconds"])).run()
    result: dict[str, float] = {}
    for name in ("jobs_per_s", "latency_p50_ms", "latency_p99_ms"):
        simulated = getattr(found, name)
        result |= {f"measured_{name}": measured[name], f"simulated_{name}": round(simulated, 1)}
        result[f"ratio_{name}"] = round(measured[name] / simulated, 3)
    return result


def limits(costs: Costs) -> dict[str, Any]:
    """Return where one Redis ends, by its utilisation alone, and how many cells more jobs need."""
    most, fleet = end_of_one_redis(costs)
    return {
        "redis_us_per_job": round(costs.job_us, 1),
        "one_redis_jobs_per_s": round(most, 1),
        "one_redis_workers": fleet.workers,
        "one_redis_gateways": fleet.gateways,
        "one_redis_idle_workers": round(0.7e6 / costs.worker_us) if costs.worker_us else None,
        "utilisation_at_100_per_s": round(utilisation(costs, fleet_for(costs, 100.0), 100.0), 3),
        **{f"cells_for_{per_s}_per_s": cells_for(costs, float(per_s)) for per_s in (1000, 3000, 10_000)},
    }
