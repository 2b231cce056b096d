"""Chaos: make chaos MINUTES=30 SEED=1, or python -m benchmarks.chaos --minutes 3

A real Valkey, two gateways and three workers with the fake engine serve clients that also cancel, hang up and vanish,
while workers, gateways and Valkey are killed, frozen past their lease, drained and paused at random. Then everything
gets time to finish, and the books are checked: every accepted job in exactly one terminal state, every picture
the one that its prompt and seed must have. The last line is one JSON object; the exit status is 0 if all gates passed:
nothing lost, nothing seen twice, redelivery p99 at most a lease and a second, the service's own books balanced.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.storm import run
from benchmarks.machine import describe_machine, keep


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1, help="of faults and requests; timing still varies")
    parser.add_argument("--lease", type=float, default=2.0, metavar="SECONDS", help="FLUID_LEASE_S of the service")
    parser.add_argument("--untimed", action="store_true", help="show the redelivery gate without failing by it: for "
                        "machines that do other work too")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the figures under benchmarks/results/")
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
        print(f"kept in {keep('chaos', {'machine': describe_machine(), **outcome.figures})}")
    print(json.dumps(outcome.figures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
