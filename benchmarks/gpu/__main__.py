"""Measure a borrowed GPU in two calls, and read what they decide.

    python -m benchmarks.gpu first              everything is right, and first timings; 250 seconds
    python -m benchmarks.gpu second             tiles, larger models, other people's methods, training; 7 minutes
    python -m benchmarks.gpu decide PLACE       the path behind FLUID_KERNELS=auto, from the results

`make gpu-first` and `make gpu-second` run the first two; docs/kernels.md says what to read in their results. Needs the
repository and torch, triton, safetensors, numpy and tqdm (and transformers for the training leg); nothing is installed
or downloaded. The exit status is 1 if a comparison failed or a part broke. `--device cpu` rehearses the same commands
with reduced shapes, kernels in Triton's interpreter, and ten times the time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.calls import FIRST, Call, second
from benchmarks.gpu.cases import MODELS
from benchmarks.gpu.decide import PATHS, decide, read
from benchmarks.gpu.parts import failures, run_parts
from benchmarks.machine import RESULTS

CPU_SLOWER = 10  # the limits are a GPU's: a rehearsal on a busy CPU without bfloat16 ran into two of them


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, call in (("first", FIRST), ("second", second(0.75))):
        own = commands.add_parser(name, help=f"within {call.budget_s:.0f} seconds")
        parts = ", ".join(part.name for part in call.parts)
        own.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal (default cuda)")
        own.add_argument("--quick", action="store_true", help="reduced shapes, as in a rehearsal")
        own.add_argument("--out", type=Path, help="folder of the results (default $OUT, or else benchmarks/results)")
        own.add_argument("--resume", type=Path, metavar="FOLDER", help="results of a start that was cut, if not in "
                         "--out: its finished parts are not run again")  # fmt: skip
        own.add_argument("--budget", type=float, metavar="SECONDS", help=f"for all parts (default {call.budget_s:.0f})")
        own.add_argument("--parts", nargs="+", metavar="PART", choices=[part.name for part in call.parts],
                         help=f"run only these, even if they are done: {parts}")  # fmt: skip
        own.add_argument("--paths", nargs="+", choices=PATHS, default=PATHS, help="paths of the head's loop")
        own.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL",
                         help=f"of {', '.join(MODELS)} (default: each part's own)")  # fmt: skip
        own.add_argument("--processes", type=int, default=16, help="that compile ahead (default 16)")
        if name == "second":
            own.add_argument(
                "--train-minutes", type=float, default=0.75, help="length of the training leg (default 0.75)"
            )
            own.add_argument("--recipe", type=Path, help="recipe of a run packed by model.training.portable_run")
            own.add_argument(
                "--mar-repo", type=Path, help="a clone of LTH14/mar to compare with (needs timm and scipy)"
            )
    own = commands.add_parser("decide", help="what the results decide")
    own.add_argument("places", nargs="+", type=Path, metavar="PLACE",
                     help="a folder with gpu-first*.json or gpu-second*.json, or such a file")  # fmt: skip
    return parser


def measure(args: argparse.Namespace) -> int:
    """Run a call's parts; print what failed and, last, one JSON object. Return the exit status."""
    call: Call = FIRST if args.command == "first" else second(args.train_minutes)
    cpu = args.device == "cpu"
    name, out = f"gpu-{args.command}", args.out or Path(os.environ.get("OUT") or RESULTS)
    slower = CPU_SLOWER if cpu else 1
    parts = [replace(p, limit_s=slower * p.limit_s) for p in call.parts if args.parts is None or p.name in args.parts]
    args.quick, args.own_models = args.quick or cpu, args.models is None
    args.models = tuple(args.models or (("mar-small", "fluid-small") if args.quick else call.models))
    args.batches = (1, 2) if args.quick else (1, 64)
    if not cpu:
        importlib.import_module("fluid_kernels.tools.check")  # Triton and the kernels, once for all parts
    if args.resume and args.resume.resolve() != out.resolve():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.resume / f"{name}.jsonl", out / f"{name}.jsonl")
    result = run_parts(parts, args, out, name, args.budget or slower * call.budget_s, args.parts or ())
    wrong, records = failures(result), sum(len(part["records"]) for part in result["parts"].values())
    print(f"\n{records} records in {out / name}.json, {len(wrong)} failures")
    for line in wrong[:20]:
        print(line)
    for line in decide([result]).lines():
        print(line)
    print(json.dumps({"ok": not wrong, "records": records, "failed": len(wrong)}))
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.command == "decide":
        print("\n".join(decide(read(args.places)).lines()))
        return 0
    return measure(args)


if __name__ == "__main__":
    sys.exit(main())
