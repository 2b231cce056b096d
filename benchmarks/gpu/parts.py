"""Isolated parts of a measurement on a borrowed device: a part that fails does not affect the others.

Each part runs in its own process with its own time limit. Every record is a line of NAME.jsonl before the next one is
measured, so that a kernel that hangs, a context poisoned by an illegal address, or the end of the device's lease costs
only what was not yet measured. A second start with the same folder skips the parts that ended without an error.

    NAME.jsonl   every event: a part begins, has a record, ends
    NAME.json    the same as {"parts": {part: {"records", "seconds", "error"}}}, written after each part
    NAME.log     what the parts printed, the beginning and the end of each
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL_WAIT_S = 10.0  # a process that hangs inside the driver cannot be ended; the next part then runs beside it
KEPT_OUTPUT = 32 << 10  # bytes of a part's output in the log, from its beginning and again from its end
ECHOED_OUTPUT = 2 << 10  # bytes of it on the terminal
MOST_RECORDS, MOST_RECORD_BYTES = 2000, 16 << 10  # of one part
UNFINISHED, NO_TIME = "not finished", "no time was left"
Record = dict[str, Any]
Emit = Callable[[Record], None]


@dataclass(frozen=True)
class Part:
    """One part: work(args, emit) calls emit(record) after each result.

    interpreted: on a CPU its kernels run in Triton's interpreter, so that its code is rehearsed too.
    """

    name: str
    limit_s: float
    work: Callable[[Any, Emit], None]
    interpreted: bool = False


class Journal:
    """The events of a measurement, one JSON object a line. Several processes may append to it."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        cut = file.exists() and not file.read_bytes().endswith(b"\n")  # by a kill in the middle of a line
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if cut:
            os.write(self._descriptor, b"\n")

    def append(self, part: str, **event: Any) -> None:
        """Write one event with one call, so that lines of several processes do not mix."""
        line = json.dumps({"part": part, **event}, default=str)
        if len(line) > MOST_RECORD_BYTES:
            line = json.dumps({"part": part, "record": {"error": f"a record of {len(line)} bytes was dropped"}})
        os.write(self._descriptor, line.encode() + b"\n")

    def outcomes(self) -> dict[str, Record]:
        """What is known of each part that has begun; of a part that began twice, the second time."""
        found: dict[str, Record] = {}
        for line in self.file.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if "begin" in event:
                found[event["part"]] = {"records": [], "seconds": None, "error": UNFINISHED}
            elif event["part"] in found and "record" in event:
                found[event["part"]]["records"].append(event["record"])
            elif event["part"] in found:
                found[event["part"]] |= event.get("end") or {"error": event.get("broke")}
        return found

    def close(self) -> None:
        os.close(self._descriptor)


def run_parts(
    parts: Sequence[Part], args: Any, folder: Path, name: str, budget_s: float, again: Sequence[str] = ()
) -> Record:
    """Run the parts in turn within `budget_s` seconds; skip those that an earlier start in `folder` has finished.

    The caller must not have used a CUDA device: a forked process could not use it.

    Args:
        again: names of parts to run even if they are done.
    """
    journal, deadline = Journal(folder / f"{name}.jsonl"), time.monotonic() + budget_s
    earlier = journal.outcomes()
    done = {part for part, outcome in earlier.items() if outcome["error"] is None} - set(again)
    for part in parts:
        if part.name in done:
            print(f"# {part.name}: done in an earlier start", flush=True)
            continue
        journal.append(part.name, begin=time.time())
        limit_s = min(part.limit_s, deadline - time.monotonic())
        error: str | None = NO_TIME
        began = time.monotonic()
        if limit_s > 0:
            print(f"# {part.name}, up to {limit_s:.0f} s", flush=True)
            with (folder / f"{name}.log").open("ab") as log:
                error = _run_one(part, args, limit_s, journal, log)
        seconds = round(time.monotonic() - began, 1)
        journal.append(part.name, end={"seconds": seconds, "error": error})
        outcomes = journal.outcomes()
        (folder / f"{name}.json").write_text(json.dumps({"parts": outcomes}, indent=1) + "\n")
        count = len(outcomes[part.name]["records"])
        print(f"  {part.name}: {count} records, {seconds:.1f} s" + (f", {error}" if error else ""), flush=True)
    result = {"parts": journal.outcomes()}
    journal.close()
    return result


def failures(result: Record) -> list[str]:
    """Return one line per failure: parts that broke, and records with an error or `ok` false."""
    lines = []
    for name, outcome in result["parts"].items():
        if outcome["error"]:
            lines.append(f"{name}: {outcome['error']}")
        for record in outcome["records"]:
            if record.get("error") or record.get("ok") is False:
                lines.append(f"{name}: {json.dumps(record)}"[:400])
    return lines


@contextmanager
def attempt(emit: Emit, about: Record) -> Iterator[Record]:
    """Run one case: emit the record that the block fills in. An exception becomes its `error`; the part continues."""
    record = dict(about)
    try:
        yield record
    except Exception as error:
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"[:300]
    emit(record)


def _run_one(part: Part, args: Any, limit_s: float, journal: Journal, log: Any) -> str | None:
    """Run a part in a process of its own; return what went wrong, or None."""
    read, write = os.pipe()
    sys.stdout.flush()
    log.flush()
    with warnings.catch_warnings():
        # Forked, so that nothing is imported again: that would take longer than most parts. Threads are numpy's pool.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if not process:
        _child(part, args, journal, (read, write))
    os.close(write)
    output, end, status = _Output(part.name, log), time.monotonic() + limit_s, None
    try:
        while status is None and time.monotonic() < end:
            output.take(read, min(0.05, max(0.0, end - time.monotonic())))
            status = _exit_status(process)
    finally:
        for kill, target in ((os.killpg, process), *([(os.kill, process)] if status is None else [])):
            with suppress(ProcessLookupError):  # its own children too, whether it has ended or not
                kill(target, signal.SIGKILL)
        late, patience = status is None, time.monotonic() + KILL_WAIT_S
        while status is None and time.monotonic() < patience:
            output.take(read, 0.05)
            status = _exit_status(process)
        output.take(read, 0.0)
        os.close(read)
        output.close()
    if late:
        return f"killed after {limit_s:.0f} s" + ("" if status is not None else ", and still there 10 s later")
    if status:
        said = journal.outcomes()[part.name]["error"]
        return f"exit status {status}" if said == UNFINISHED else said
    return None


def _exit_status(process: int) -> int | None:
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


class _Output:
    """A part's output: a bounded amount of it goes to the terminal and to the log, the middle is dropped."""

    def __init__(self, name: str, log: Any):
        self.log, self.end, self.taken = log, b"", 0
        log.write(f"\n# {name}\n".encode())

    def take(self, read: int, wait_s: float) -> None:
        """Wait for output, and read what there is, a bounded amount of it: a flood must not keep the caller here."""
        for number in range(16):
            if not select.select([read], [], [], wait_s if number == 0 else 0.0)[0]:
                return
            chunk = os.read(read, 1 << 16)
            if not chunk:
                time.sleep(wait_s if number == 0 else 0.0)  # closed by a part that still runs
                return
            if self.taken < ECHOED_OUTPUT:
                print(chunk[: ECHOED_OUTPUT - self.taken].decode(errors="replace"), end="", flush=True)
            head = chunk[: max(0, KEPT_OUTPUT - self.taken)]
            self.log.write(head)
            self.end = (self.end + chunk[len(head) :])[-KEPT_OUTPUT:]
            self.taken += len(chunk)

    def close(self) -> None:
        if self.taken > 2 * KEPT_OUTPUT:
            self.log.write(f"\n… {self.taken - 2 * KEPT_OUTPUT} bytes dropped …\n".encode())
        self.log.write(self.end)


def _child(part: Part, args: Any, journal: Journal, pipe: tuple[int, int]) -> None:
    """The part's process; does not return, because what the parent would do at its exit is the parent's."""
    status = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent
        for number in (1, 2):
            os.dup2(pipe[1], number)
        for descriptor in pipe:
            os.close(descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        faulthandler.enable(sys.stderr)
        if part.interpreted and args.device == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which nothing has done yet
        part.work(args, _emitter(part.name, journal))
        status = 0
    except BaseException as error:
        traceback.print_exc()
        journal.append(part.name, broke=f"{type(error).__name__}: {error}"[:500])
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _emitter(name: str, journal: Journal) -> Emit:
    sent = 0

    def emit(record: Record) -> None:
        nonlocal sent
        sent += 1
        if sent > MOST_RECORDS:
            raise RuntimeError(f"over {MOST_RECORDS} records")
        journal.append(name, record=record)
        print("  " + "  ".join(f"{key}={_short(value)}" for key, value in record.items())[:300], flush=True)

    return emit


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
