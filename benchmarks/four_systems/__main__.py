"""`python -m benchmarks.four_systems run`, `table` or `grid`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import benchmarks.four_systems
from benchmarks.four_systems.figure import save_figure
from benchmarks.four_systems.grid import save_grid
from benchmarks.four_systems.runs import StageError, run_stages
from benchmarks.four_systems.table import collect, print_tables
from benchmarks.machine import describe_machine, save_result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.four_systems",
        description=benchmarks.four_systems.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("do", choices=("run", "table", "grid"))
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of all runs (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20.0,
                        help="run: processor time to train each system (%(default)s)")  # fmt: skip
    parser.add_argument("--tokenizer-minutes", type=float, default=40.0,
                        help="run: time of day to train each tokenizer (%(default)s)")  # fmt: skip
    parser.add_argument("--prompts", type=int, default=25, help="run: prompts in each of six categories (%(default)s)")
    parser.add_argument("--sheet", type=Path, default=Path("out/four-systems.png"), help="grid: file (%(default)s)")
    parser.add_argument("--figure", type=Path, help="table: write the scaling curve to this file, as SVG")
    parser.add_argument("--curve", type=Path, metavar="RUNS", help="table: folder of the runs of the scaling curve, if "
                        "they are others (default: that of --runs)")  # fmt: skip
    parser.add_argument("--no-save", action="store_true", help="table: print only")
    args = parser.parse_args(argv)
    if args.do == "run":
        try:
            run_stages(args.runs, args.minutes, args.tokenizer_minutes, args.prompts)
        except StageError as error:
            sys.exit(str(error))
        return
    if args.do == "grid":
        print(f"look at {save_grid(args.runs, args.sheet)}")
        return
    result = {"machine": describe_machine(), **collect(args.runs, args.curve)}
    print_tables(result)
    if args.figure:
        try:
            print(f"scaling curve in {save_figure(result, args.figure)}")
        except ValueError as error:
            sys.exit(str(error))
    if not args.no_save:
        print(f"saved to {save_result('four-systems', result)}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
