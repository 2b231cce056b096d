"""Chaos test of the queue's promise: nothing accepted is lost, nothing is visible twice.

A real Valkey, two gateways and four workers with the fake engine serve clients that also cancel, hang up and
disconnect, while workers, gateways and Valkey are killed, frozen past their lease, drained and paused at random. Then
everything gets time to finish, and every job is audited: each accepted job must be in exactly one terminal state, and
each image must be the one of its prompt and seed.

Gates: no job lost, none duplicated, redelivery p99 at most the lease plus one second, and the service's own counters
consistent. The exit status is 0 if all gates pass. The last line of output is one JSON object.

It runs for --minutes, then up to 2 minutes more until the last job has ended and is audited. Example:

    make chaos MINUTES=30 SEED=1
    python -m benchmarks.chaos --minutes 3 --untimed
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.storm import run
from benchmarks.machine import describe_machine, save_result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of the faults (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="seed of faults and requests; timing still varies")
    parser.add_argument("--lease", type=float, default=2.0, metavar="SECONDS", help="FLUID_LEASE_S of the service")
    parser.add_argument("--untimed", action="store_true", help="report the redelivery gate, but do not fail because "
                        "of it: for machines that are busy with other work")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="save the figures under benchmarks/results/")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fluid-chaos-") as folder:
        outcome = asyncio.run(run(args.minutes, args.seed, args.lease, Path(folder)))
    failures = outcome.failures + ([] if args.untimed else outcome.late)
    for text in (*outcome.remarks, *outcome.failures, *outcome.late):
        print(text, file=sys.stderr)
    for name, value in outcome.figures.items():
        print(f"{name:20s}{value}")
    print("gates: " + ("FAILED" if failures else "passed"))
    if args.keep:
        print(f"saved to {save_result('chaos', {'machine': describe_machine(), **outcome.figures})}")
    print(json.dumps(outcome.figures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
