"""Regression gate: fails if a ratio has become more than 15 % worse than when it was last accepted.

Absolute times depend on the machine and on what else it does, so none is compared: Redis' time is relative to a script
of constant work, processor time to a loop of pure Python, the engine to the reference decoder, the head to matrix
products of its shapes; commands are counted. A ratio that is worse is measured again, twice at most, and its best value
counts; what is accepted is the median of three. Accepted ratios are in benchmarks/results/gate-MACHINE.json, a file for
each kind of machine; on a kind that has none, only the counts are compared. --accept writes the file: after an
improvement, or a loss that is meant.

The last line of output is one JSON object. Example:

    make bench-gate
    make bench-gate ARGS="--only queue"
    make bench-gate ARGS="--counts --only queue --only serving"    what make test-all runs
    make bench-gate ARGS=--accept
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence

from benchmarks.gate import engines, queue, serving
from benchmarks.gate.compare import LOSS, Finding, accepted_file, compare, machine_kind, only_counts, read_accepted
from benchmarks.machine import describe_machine

PARTS = {
    "queue": lambda: asyncio.run(queue.measure()),
    "serving": lambda: asyncio.run(serving.measure()),
    "engines": engines.measure,
}
ATTEMPTS = 3


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accept", action="store_true", help="write the present ratios as the accepted ones")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="measure only this part; may be "
                        "repeated")  # fmt: skip
    parser.add_argument("--counts", action="store_true", help="judge only the counts, which no other work can change")
    args = parser.parse_args(argv)
    machine = describe_machine()
    kind = machine_kind(machine)
    accepted = read_accepted(kind)
    if args.counts:
        accepted = only_counts(accepted)
    ratios: dict[str, float] = {}
    findings: list[Finding] = []
    for part in args.only or PARTS:
        ratios |= typical(part) if args.accept else best(part, accepted)
    findings = compare(ratios, accepted)
    print_table(findings)
    losses = [finding.name for finding in findings if finding.is_loss]
    if args.accept:
        file, all_ratios = accepted_file(kind), {**read_accepted(kind), **_rounded(ratios)}
        file.write_text(json.dumps({"machine": machine, "ratios": all_ratios}, indent=1) + "\n")
        print(f"accepted: {file}")
    elif losses:
        print(f"{', '.join(losses)}: more than {LOSS:.0%} worse than accepted. If that is meant, run with --accept.")
    elif not args.counts and not accepted_file(kind).exists():
        print(f"No ratios are accepted for this kind of machine ({kind}): only counts were compared. See --accept.")
    print(json.dumps({"machine": machine, "ratios": _rounded(ratios), "losses": losses}))
    sys.exit(1 if losses and not args.accept else 0)


def best(part: str, accepted: dict[str, float]) -> dict[str, float]:
    """Measure a part until no ratio is a loss, and at most ATTEMPTS times; return the least value of each ratio."""
    ratios: dict[str, float] = {}
    for _ in range(ATTEMPTS):
        for name, value in PARTS[part]().items():
            ratios[name] = min(value, ratios.get(name, value))
        if not any(finding.is_loss for finding in compare(ratios, accepted)):
            break
    return ratios


def typical(part: str) -> dict[str, float]:
    """Measure a part ATTEMPTS times; return the median of each ratio."""
    runs = [PARTS[part]() for _ in range(ATTEMPTS)]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def print_table(findings: Sequence[Finding]) -> None:
    """Print a row per ratio: accepted, now, change, verdict."""
    print(f"{'cost':26s}{'accepted':>10s}{'now':>10s}{'change':>9s}")
    for found in findings:
        accepted = "-" if found.accepted is None else f"{found.accepted:.4g}"
        change = "" if found.change is None else f"{found.change:+.0%}"
        print(f"{found.name:26s}{accepted:>10s}{found.now:10.4g}{change:>9s}  {found.verdict}")


def _rounded(ratios: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in ratios.items()}


if __name__ == "__main__":
    main()
