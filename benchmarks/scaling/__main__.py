"""How far one Redis goes, and how to cut beyond it: a simulation driven by measured service times.

It simulates 1 to 10,000 workers, 10 to 10,000 jobs a second and workers that die, with the service times of
benchmarks/scaling/measured.json, and writes docs/images/scaling-*.svg. With --measure it measures those times on this
machine first, with two gateways and eight workers, and compares their throughput and latency with the simulation.

It takes about 20 seconds, and 2 minutes more with --measure. The last line of output is one JSON object. Example:

    make scaling
    python -m benchmarks.scaling --measure
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.scaling.figure import Line, save
from benchmarks.scaling.measure import measure
from benchmarks.scaling.model import MEASURED, Costs, Fleet
from benchmarks.scaling.sweeps import by_arrivals, by_losses, by_workers, check, limits

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: `make load`: images a second by number of workers, each of 4 rows, 20 steps of 60 ms.
GROWTH = Path(__file__).parents[1] / "results" / "growth-2026-11-28.json"
COLUMNS = ("arrivals_per_s", "workers", "gateways", "jobs_per_s", "waited_p50_ms", "waited_p99_ms", "redis",
           "redelivered")  # fmt: skip


def run(quick: bool, images: Path | None) -> dict[str, Any]:
    """Simulate and print tables; write the figures if `images` is a folder."""
    measured = json.loads(MEASURED.read_text())
    costs = Costs.read()
    result: dict[str, Any] = {"limits": limits(costs), "check": check(costs, measured["check"])}
    for name, rows in (
        ("by_arrivals", by_arrivals(costs, quick)),
        ("by_workers", by_workers(costs, quick)),
        ("by_losses", by_losses(costs, quick)),
    ):
        result[name] = rows
        print_table(name, rows)
    for name in ("limits", "check"):
        print(f"\n{name}")
        for key, value in result[name].items():
            print(f"  {key:32s}{value}")
    if images is not None:
        save_figures(result, measured, costs, images)
    return result


def print_table(name: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = [column for column in ("losses_per_hour", *COLUMNS) if column in rows[0]]
    print(f"\n{name}\n" + "".join(f"{column:>16s}" for column in columns))
    for row in rows:
        print("".join(f"{row.get(column, math.nan):16,.2f}" for column in columns))


def save_figures(result: dict[str, Any], measured: dict[str, Any], costs: Costs, images: Path) -> None:
    """Write scaling-latency.svg and scaling-workers.svg."""
    found, most = measured["check"], result["limits"]["one_redis_jobs_per_s"]
    arrivals = result["by_arrivals"]
    save(
        images / "scaling-latency.svg",
        "one Redis: from the request to the first step, workers 80 % busy",
        ("jobs a second", "milliseconds"),
        (8, 2000),
        (1, 100_000),
        [
            Line("p50, simulated", _points(arrivals, "arrivals_per_s", "waited_p50_ms"), "#06c"),
            Line("p99, simulated", _points(arrivals, "arrivals_per_s", "waited_p99_ms"), "#06c", True),
            Line(
                "p50 and p99, measured (8 workers of shorter steps)",
                [(found["per_s"], found["added_p50_ms"]), (found["per_s"], found["added_p99_ms"])],
                "#c60",
                dots=True,
            ),
        ],
        (most, "Redis 70 % busy"),
    )
    growth = json.loads(GROWTH.read_text())
    counts = (1, 2, 4, 8)
    workers = result["by_workers"]
    ideal = [(row["workers"], Fleet(1, row["workers"]).jobs_per_s) for row in workers]
    save(
        images / "scaling-workers.svg",
        "jobs a second from a backlog, by workers of 3.3 jobs a second each",
        ("workers", "jobs a second"),
        (1, 10_000),
        (1, 40_000),
        [
            Line("as many cells as needed", ideal, "#888", True),
            Line("one Redis, simulated", _points(workers, "workers", "jobs_per_s"), "#06c"),
            Line(
                "measured (make load)",
                [(count, growth[f"fixed_step_images_per_s_{count}_workers"]) for count in counts],
                "#c60",
                dots=True,
            ),
        ],
        (result["limits"]["one_redis_workers"], "Redis 70 % busy"),
    )


def _points(rows: Sequence[dict[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in rows if y in row]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few points, each short; no figures")
    parser.add_argument(
        "--measure", action="store_true", help="measure the service times on this machine, and keep them"
    )
    args = parser.parse_args(argv)
    if args.measure:
        found = {"machine": describe_machine(), **asyncio.run(measure(args.quick))}
        MEASURED.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(run(args.quick, None if args.quick else IMAGES)))


if __name__ == "__main__":
    main()
