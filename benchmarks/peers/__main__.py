"""The service against what a user would pick instead, on one machine, with the same work and load from outside.

Six servers generate the same images behind the same route: FastAPI by hand, LitServe, Ray Serve, BentoML, FastAPI with
arq, and ours. wrk generates the load. An image is 20 steps of 2 ms that up to 16 images share; peers run batches of
whole images, ours shares every step. One part serves the shipped model instead. The last line of output is one JSON
object.

`make bench-peers` installs the peers into an environment outside the clone first. It takes about 20 minutes on 2
otherwise idle cores, and about 7 with --quick. Example:

    make bench-peers
    python -m benchmarks.peers --quick --only throughput --sides ours litserve
    python -m benchmarks.peers --report benchmarks/results/peers-2026-11-28.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, save_result
from benchmarks.peers import pages, report, wrk
from benchmarks.peers.parts import FULL, PARTS, QUICK, Setup
from benchmarks.peers.sides import NAMES, PEERS

VENV = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluid-serve" / "peers"
VERSIONS = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({name: version(name) for name in ('fastapi', 'litserve', 'ray', 'bentoml', 'arq')}))"
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of short runs; nothing is saved")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="run only this part; may be repeated; "
                        "nothing is saved")  # fmt: skip
    parser.add_argument("--sides", choices=NAMES, nargs="+", default=list(NAMES), help="compare only these; nothing is "
                        "saved")  # fmt: skip
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always", help="when our queue writes "
                        "accepted jobs to disk; nothing is saved unless always (default: %(default)s)")  # fmt: skip
    parser.add_argument("--venv", type=Path, default=VENV, help="environment of the peers (default: %(default)s)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures of a saved run into "
                        "docs/benchmarks.md and README.md, and run nothing")  # fmt: skip
    args = parser.parse_args(argv)
    if args.report is not None:
        print("written:", *pages.write(args.report))
        return
    python = args.venv / "bin" / "python"
    if missing := missing_tools(python, args.sides):
        print(missing, file=sys.stderr)
        sys.exit(2)

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # stops the servers on the way out
    setup = Setup(args.sides, python, QUICK if args.quick else FULL, args.fsync)
    result: dict[str, Any] = {"machine": describe_machine(), "peers": versions(python)}
    for name, part in PARTS.items():
        if args.only is None or name in args.only:
            result[name] = part(setup)
            report.print_table(name, result[name])
    result["problems"] = setup.problems
    if not (args.quick or args.only or len(args.sides) < len(NAMES) or args.fsync != "always"):
        saved = save_result("peers", result)
        print(f"\nsaved to {saved}; `python -m benchmarks.peers --report {saved}` fills the pages")
    print(json.dumps(result))


def missing_tools(python: Path, sides: list[str]) -> str | None:
    """Return how to install what is missing; None if nothing is."""
    if shutil.which("wrk") is None:
        return wrk.INSTALL
    if set(sides) & set(PEERS) and not python.exists():
        return f"The peers are not installed in {python.parent.parent}: `make bench-peers` does that, or give --venv."
    return None


def versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers' packages."""
    if not python.exists():
        return {}
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", VERSIONS], capture_output=True, check=True).stdout)
    return found


if __name__ == "__main__":
    main()
