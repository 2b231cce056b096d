"""CPU benchmarks of the engine, one after another, each against a reference; then a table of targets.

It takes under 10 minutes on an otherwise idle machine, and under 2 with --quick. The last line of output is one JSON
object with all figures. Example:

    make bench
    python -m benchmarks --quick
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import batching, exact, growth, head, sampling, served
from benchmarks.imported import amused
from benchmarks.machine import describe_machine, save_result

TARGETS = {
    "exact_speedup_b1": ">= 3", "exact_speedup_b8": ">= 3", "head_share_of_peak_256": ">= 0.85",
    "backbone_share_of_peak_16": ">= 0.85", "amused_over_pipeline": ">= 2",
    "served_share_of_bare": ">= 0.95", "continuous_over_static_throughput": "> 1.3", "fast_over_exact": ">= 2",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewest cases, one round each; nothing is saved")
    parser.add_argument("--mar-repo", type=Path, help="a clone of LTH14/mar to compare with (needs timm and scipy)")
    args = parser.parse_args(argv)

    result: dict[str, Any] = {"machine": describe_machine()}
    print("\n# head and backbone against the matmul peak")
    result |= head.run(args.quick)
    print("\n# exact sampling at MAR-B's shape")
    result |= exact.run(args.quick, args.mar_repo)
    print("\n# continuous against static batching")
    result |= batching.run(args.quick)
    print("\n# aMUSEd-256 scaled down against diffusers' pipeline, one thread")
    result |= amused.run(args.quick)
    print("\n# service against bare engine")
    result |= served.run(args.quick)
    print("\n# growth of cost")
    result["growth"] = growth.run(args.quick, None if args.quick else growth.PLOT)
    print("\n# default preset against 32 x 50 steps, shipped model")
    result |= sampling.fast_over_exact(args.quick)

    print(f"\n{'figure':38s}{'target':>10s}{'measured':>10s}")
    for name, target in TARGETS.items():
        print(f"{name:38s}{target:>10s}{result[name]:10.2f}")
    if not args.quick:
        print(f"saved to {save_result('engine', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
