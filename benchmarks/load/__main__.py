"""Load test of the service with the fake engine: added latency, throughput, growth with workers, backlog and streams, a
noisy neighbour.

Gateway, workers and Valkey are real processes, and Valkey syncs its append-only file at every write. The load comes
from this process, open loop; its own share of a core is among the figures. Latency is compared with its targets, and
throughput with that of the engines alone. The last line of output is one JSON object.

It takes about 20 minutes on 2 otherwise idle cores, half of which are growth with a backlog of a million jobs, and
about 2 minutes with --quick. Example:

    make load
    python -m benchmarks.load --only growth
    python -m benchmarks.load --quick --only latency
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from benchmarks.load import backlog, growth, latency, neighbour, processor, steps, streams, throughput
from benchmarks.machine import describe_machine, save_result

PARTS = {
    "latency": latency.at_100_per_second,
    "connections": latency.at_512_connections,
    "processor": processor.per_image,
    "steps": steps.own_time,
    "throughput": throughput.by_workers,
    "workers": growth.by_workers,
    "backlog": backlog.by_size,
    "streams": streams.memory_of_each,
    "neighbour": neighbour.noisy_neighbour,
}
#: What a service under more load, with more waiting jobs and more workers, costs: --only growth runs these.
GROWTH = ("workers", "backlog", "streams")
#: Milliseconds, or as the name of the figure says; linear_8_workers is at least that, the others are at most that.
TARGETS = {
    "added_p50_ms_100rps": 2,
    "added_p99_ms_100rps": 10,
    "added_p99_ms_512c": 50,
    "own_us_per_step": 100,
    "neighbour_p99_ratio": 2,
    "linear_8_workers": 0.95,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter runs and a backlog of at most 2,000; nothing is saved"
    )
    parser.add_argument("--only", choices=[*sorted(PARTS), "growth"], action="append", help="run only this part; may "
                        f"be repeated; nothing is saved. growth is {', '.join(GROWTH)}, saved as such")  # fmt: skip
    args = parser.parse_args(argv)
    grows = args.only == ["growth"]
    chosen = set(args.only or PARTS) | (set(GROWTH) if "growth" in (args.only or ()) else set())
    result: dict[str, Any] = {"machine": describe_machine()}
    for name, part in PARTS.items():
        if name in chosen:
            figures = asyncio.run(part(args.quick))
            for key, value in figures.items():
                target = f"   target {TARGETS[key]}" if key in TARGETS else ""
                print(f"{key:36s}{value!s:>12}{target}", flush=True)
            result |= figures
    if not args.quick and (grows or not args.only):
        print(f"saved to {save_result('growth' if grows else 'load', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
