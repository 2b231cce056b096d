"""Load test of the service with the fake engine: added latency, throughput, cost of a backlog, a noisy neighbour.

Gateway, workers and Valkey are real processes, and Valkey syncs its append-only file at every write. The load comes
from this process, open loop; its own share of a core is among the figures. Latency is compared with its targets, and
throughput with that of the engines alone. The last line of output is one JSON object.

It takes 5 to 10 minutes on 2 otherwise idle cores, and about 1 minute with --quick. Example:

    make load
    python -m benchmarks.load --quick --only latency
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from benchmarks.load import backlog, latency, neighbour, steps, throughput
from benchmarks.machine import describe_machine, save_result

PARTS = {
    "latency": latency.at_100_per_second,
    "connections": latency.at_512_connections,
    "steps": steps.own_time,
    "throughput": throughput.by_workers,
    "backlog": backlog.at_100000,
    "neighbour": neighbour.noisy_neighbour,
}
#: Milliseconds, or as the name of the figure says.
TARGETS = {
    "added_p50_ms_100rps": 2,
    "added_p99_ms_100rps": 10,
    "added_p99_ms_512c": 50,
    "own_us_per_step": 100,
    "neighbour_p99_ratio": 2,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter runs and a backlog of 2,000; nothing is saved")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="run only this part; may be repeated; "
                        "nothing is saved")  # fmt: skip
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"machine": describe_machine()}
    for name, part in PARTS.items():
        if args.only is None or name in args.only:
            figures = asyncio.run(part(args.quick))
            for key, value in figures.items():
                target = f"   target {TARGETS[key]}" if key in TARGETS else ""
                print(f"{key:36s}{value!s:>12}{target}", flush=True)
            result |= figures
    if not (args.quick or args.only):
        print(f"saved to {save_result('load', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
