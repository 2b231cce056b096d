"""Isolated parts of a measurement on a borrowed device: a part that fails does not affect the others.

Each part runs in its own process with its own time limit, and every record is on disk before the next one: a kernel
that hangs, a context poisoned by an illegal address, or the end of the device's lease costs only what was not yet
measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

CPU_SLOWER = 10  # the limits are a GPU's: a rehearsal on a busy CPU without bfloat16 ran into two of them
Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part: work(args, emit) calls emit(record) after each result."""

    name: str
    limit_s: float
    work: Callable[[Any, Callable[[Record], None]], None]


def command(doc: str | None, name: str, parts: Sequence[Part], total_s: float) -> None:
    """Run a measurement's command line: parse flags, run the parts in turn, print a table and finally one JSON object.

    Exits with status 1 if anything failed. The figures go to benchmarks/results/ unless --out names another file.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="device to run on (default cuda)")
    parser.add_argument("--quick", action="store_true", help="run only the fewest and smallest cases")
    names = ", ".join(part.name for part in parts)
    parser.add_argument("--only", nargs="*", metavar="PART", help=f"run only these parts: {names}")
    parser.add_argument("--out", type=Path, help=f"JSON file (default benchmarks/results/{name}-DATE.json)")
    args = parser.parse_args()
    out: Path = args.out or RESULTS / f"{name}-{datetime.date.today().isoformat()}.json"
    slower = CPU_SLOWER if args.device == "cpu" else 1
    chosen = [
        replace(part, limit_s=slower * part.limit_s) for part in parts if args.only is None or part.name in args.only
    ]
    result = run_parts(chosen, args, out, slower * total_s)
    wrong = failures(result)
    print(f"\nsaved to {out}; {len(wrong)} of {sum(len(p['records']) for p in result['parts'].values())} failed")
    for line in wrong:
        print(line)
    print(json.dumps({"ok": not wrong, "failed": wrong}))
    sys.exit(1 if wrong else 0)


def run_parts(parts: Sequence[Part], args: Any, file: Path, total_s: float) -> Record:
    """Run all parts in turn within `total_s` seconds, and write the results so far to `file` after each.

    The caller must not have used a CUDA device: a forked process could not use it.
    """
    result: Record = {"parts": {}}
    deadline = time.monotonic() + total_s
    file.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        print(f"\n# {part.name}", flush=True)
        limit_s = min(part.limit_s, deadline - time.monotonic())
        result["parts"][part.name] = _run_one(part, args, limit_s)
        file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def failures(result: Record) -> list[str]:
    """Return one line per failure: parts that broke, and records with an error or `ok` false."""
    lines = []
    for name, outcome in result["parts"].items():
        if outcome["error"]:
            lines.append(f"{name}: {outcome['error']}")
        for record in outcome["records"]:
            if record.get("error") or record.get("ok") is False:
                lines.append(f"{name}: {json.dumps(record)}")
    return lines


@contextmanager
def attempt(emit: Callable[[Record], None], about: Record) -> Iterator[Record]:
    """Run one case: emit the record that the block fills in. An exception becomes its `error`; the part continues."""
    record = dict(about)
    try:
        yield record
    except Exception as error:
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"[:300]
    emit(record)


def _run_one(part: Part, args: Any, limit_s: float) -> Record:
    began = time.monotonic()
    if limit_s <= 0:
        return {"records": [], "seconds": 0.0, "error": "no time was left"}
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        records.touch()
        # Forked, so that nothing is imported again.
        process = multiprocessing.get_context("fork").Process(target=_child, args=(part, args, records))
        process.start()
        process.join(limit_s)
        error = None
        if process.is_alive():
            process.kill()
            process.join()
            error = f"killed after {limit_s:.0f} s"
        lines = [json.loads(line) for line in records.read_text().splitlines()]
    if error is None and process.exitcode:
        error = next((r["part_error"] for r in lines if "part_error" in r), f"exit status {process.exitcode}")
    if error:
        print(f"{part.name}: {error}", flush=True)
    kept = [r for r in lines if "part_error" not in r]
    return {"records": kept, "seconds": round(time.monotonic() - began, 1), "error": error}


def _child(part: Part, args: Any, records: Path) -> None:
    with records.open("a") as stream:

        def emit(record: Record) -> None:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            print("  " + "  ".join(f"{key}={_short(value)}" for key, value in record.items()), flush=True)

        try:
            part.work(args, emit)
        except Exception as error:
            traceback.print_exc()
            stream.write(json.dumps({"part_error": f"{type(error).__name__}: {error}"[:500]}) + "\n")
            stream.flush()
            raise SystemExit(1) from error


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
