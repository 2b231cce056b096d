"""Chaos test of the queue's promise: nothing accepted is lost, nothing is visible twice.

A real Valkey, two gateways and four workers with the fake engine serve clients that also cancel, hang up and
disconnect, while workers, gateways and Valkey are killed, frozen past their lease, drained and paused at random. Then
everything gets time to finish, and every job is audited: each accepted job must be in exactly one terminal state, and
each image must be the one of its prompt and seed.

Modes add faults: failover to a replica that lacks the last second, half-open connections, failed reloads, clock jumps
(where libfaketime is installed), full disks (as root). Jobs that a failover undoes by design, those of its last second,
count as rolled_back and not as lost.

The mode primary is another run, of --losses instead of --minutes: three nodes and three Sentinels, FLUID_REPLICAS=1,
and under the same load the primary is killed and its disk thrown away. There nothing counts as rolled_back: an accepted
job must survive. It also reports the seconds until a job is accepted again, and until its image is there.

Gates: no job lost, none duplicated, no process ended unasked, redelivery p99 at most the lease plus one second, and the
service's own counters consistent. The exit status is 0 if all gates pass. The last line of output is one JSON object.

It runs for --minutes, then up to 2 minutes more until the last job has ended and is audited. Example:

    make chaos MINUTES=30 SEED=1
    make chaos MINUTES=30 ARGS="--modes all --untimed"
    python -m benchmarks.chaos --minutes 3 --untimed --modes failover,half-open,reload
    python -m benchmarks.chaos --modes primary --losses 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.clock import find_library
from benchmarks.chaos.disk import mount_trouble
from benchmarks.chaos.faults import MODES
from benchmarks.chaos.primary import losses
from benchmarks.chaos.storm import run
from benchmarks.machine import describe_machine, save_result

#: A run of its own: behind Sentinel, with FLUID_REPLICAS=1.
PRIMARY = "primary"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of the faults (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="seed of faults and requests; timing still varies")
    parser.add_argument("--lease", type=float, default=2.0, metavar="SECONDS", help="FLUID_LEASE_S of the service")
    modes_help = f"further faults, separated by commas: {', '.join(MODES)}; or all (default none); or {PRIMARY} alone"
    parser.add_argument("--modes", type=_modes, default=[], metavar="LIST", help=modes_help)
    parser.add_argument("--losses", type=int, default=20, help=f"primaries to lose in the mode {PRIMARY} (default 20)")
    parser.add_argument("--replicas", type=int, choices=(1, 2), default=1, help=f"FLUID_REPLICAS in the mode {PRIMARY}")
    parser.add_argument("--untimed", action="store_true", help="report the redelivery gate, but do not fail because "
                        "of it: for machines that are busy with other work")  # fmt: skip
    parser.add_argument("--log", type=Path, metavar="FILE", help="save the log of gateways and workers")
    parser.add_argument("--keep", action="store_true", help="save the figures under benchmarks/results/")
    args = parser.parse_args(argv)
    modes, skipped = available(args.modes)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="fluid-chaos-") as folder:
        if PRIMARY in modes:
            outcome = asyncio.run(losses.run(args.losses, args.seed, args.lease, Path(folder), args.replicas))
        else:
            outcome = asyncio.run(run(args.minutes, args.seed, args.lease, Path(folder), modes))
        if args.log:
            shutil.copy(Path(folder) / "log", args.log)
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


def _modes(text: str) -> list[str]:
    if text == PRIMARY:
        return [PRIMARY]
    chosen = list(MODES) if text == "all" else [mode for mode in text.split(",") if mode]
    if unknown := set(chosen) - set(MODES):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(MODES)}, or {PRIMARY} alone"
        )
    return chosen


def available(modes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the modes that can be had on this machine, and what cannot."""
    found, skipped = list(modes), []
    if "clock" in modes and find_library() is None:
        skipped.append("jumps of Redis' clock, which need libfaketime (Debian: apt-get install faketime)")
    if "disk" in modes and (trouble := mount_trouble()) is not None:
        found.remove("disk")
        skipped.append(f"full disks, which need a small tmpfs, which only root may mount ({trouble})")
    return found, skipped


if __name__ == "__main__":
    sys.exit(main())
