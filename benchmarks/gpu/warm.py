"""Compile ahead, in many processes at once: kernels that later parts launch are then found in Triton's cache.

A compilation takes a second of one CPU core, and a measurement needs over a hundred. Each process launches its share on
the device itself, so that what is compiled is exactly what will be asked for; results are not looked at here.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu.cases import MODELS, head_case, synchronise
from benchmarks.gpu.parts import Emit
from fluid_kernels.heads import make_head
from model.config import MarConfig
from model.inference.backbone_pass import bucket
from model.inference.orders import tokens_per_step

Task = tuple[str, Callable[[], object]]
CHECKED_ROWS = (1, 7, 130)  # of part `head`
LOOP_ROWS = (1, 4, 16, 64, 256, 1024)  # of part `loop`


def run_tasks(tasks: Sequence[Task], args: argparse.Namespace, emit: Emit) -> None:
    """Run task i in process i modulo the number of processes; emit one record for each process."""
    count = max(1, min(args.processes, len(tasks)))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(i, tasks[i::count], args.device, emit)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    broken = [i for i, worker in enumerate(workers) if worker.exitcode]
    if broken:
        raise RuntimeError(f"{len(broken)} of {count} processes broke; what they left is compiled when it is needed")


def _work(number: int, tasks: Sequence[Task], device: str, emit: Emit) -> None:
    began, errors, slowest = time.perf_counter(), list[str](), (0.0, "")
    torch.set_num_threads(1)
    for name, work in tasks:
        start = time.perf_counter()
        try:
            with torch.inference_mode():
                work()
                synchronise(device)
        except Exception as error:
            traceback.print_exc()
            errors.append(f"{name}: {type(error).__name__}: {error}"[:200])
        slowest = max(slowest, (time.perf_counter() - start, name))
    emit({
        "process": number, "tasks": len(tasks), "s": round(time.perf_counter() - began, 1),
        "slowest": f"{slowest[1]}, {slowest[0]:.1f} s", **({"error": "; ".join(errors[:5])} if errors else {}),
    })  # fmt: skip


def warm_first(args: argparse.Namespace, emit: Emit) -> None:
    """Compile what call 1 launches: single operations, head loops in both dtypes, the backbone's fused kernels."""
    run_tasks(spread(first_tasks(args)), args, emit)


def first_tasks(args: argparse.Namespace) -> list[Task]:
    """Nothing in them is on the device yet: a process that has used one cannot fork others that do."""
    from fluid_kernels.tools.check import checks

    tasks: list[Task] = [(check.name, check.apart) for check in checks(args.device, args.quick)]
    for name in ("mar-small",) if args.quick else (*args.models, "atlas-128"):
        rows = {1} if args.quick else {*CHECKED_ROWS, *LOOP_ROWS, *image_rows(name, (1, 64))}
        tasks += head_tasks(name, sorted(rows), args, (torch.bfloat16, torch.float32))
        tasks += backbone_tasks(name, (2,) if args.quick else (2, 5, 128), args)
    return tasks


def warm_second(args: argparse.Namespace, emit: Emit) -> None:
    """Compile what call 2 launches: every tile of the sweep, and the larger models' kernels."""
    run_tasks(spread(second_tasks(args)), args, emit)


def second_tasks(args: argparse.Namespace) -> list[Task]:
    """As `first_tasks`."""
    from benchmarks.gpu.tuning import sweep

    tasks: list[Task] = [
        (f"{case.name} {tile.m}x{tile.n}x{tile.k}", functools.partial(case.run, tile))
        for case in sweep(args)
        for tile in case.tiles
    ]
    for name in ("mar-small",) if args.quick else args.models:
        rows = [1] if args.quick else sorted({1, *image_rows(name, (1, 64))})
        tasks += head_tasks(name, rows, args, (torch.bfloat16,))
        tasks += backbone_tasks(name, (2,) if args.quick else (2, 128), args)
    return tasks


def spread(tasks: list[Task]) -> list[Task]:
    """Put the slow tasks, which come last, first: then no process is left alone with one of them at the end."""
    return tasks[::-1]


def image_rows(name: str, batches: Sequence[int]) -> set[int]:
    """Rows of the head's loop over an image of 64 steps, for these numbers of images together."""
    config = MODELS[name]
    steps = min(64, config.tokens)
    return {count * batch for count in tokens_per_step(steps, config.tokens) for batch in batches}


def head_tasks(
    name: str, rows: Sequence[int], args: argparse.Namespace, dtypes: Sequence[torch.dtype]
) -> list[Task]:  # fmt: skip
    """Three steps of the Triton loop by number of rows: an exact first one, one that compiles, one that is replayed."""

    def run(count: int, dtype: torch.dtype) -> None:
        case = head_case(MODELS[name], args.device, count, (3,))
        make_head(case.weights, dtype, "triton")(case.rows, case.chains, case.prediction, case.clamp)

    return [
        (f"head {name} {dtype} {count} rows", functools.partial(run, count, dtype))
        for dtype in dtypes
        for count in rows
        if dtype == torch.bfloat16 or count in CHECKED_ROWS
    ]


def backbone_tasks(name: str, evaluations: Sequence[int], args: argparse.Namespace) -> list[Task]:
    """The backbone's two fused operations on as many tokens as a pass has; a whole model would not fit 16 times."""
    config = MODELS[name]
    mar = isinstance(config, MarConfig)
    lengths = {config.tokens + (config.buffer if isinstance(config, MarConfig) else 0)}
    activation = "gelu_erf" if mar else "gelu_tanh"

    def run(rows: int) -> None:
        from fluid_kernels.ops.add_norm import add_norm
        from fluid_kernels.ops.linear_gelu import LinearGelu

        x = torch.randn(rows, config.width, device=args.device)
        ones = torch.ones(config.width, device=args.device)
        for delta in (None, x.bfloat16()):
            for dtype in (torch.bfloat16, torch.float32):
                add_norm(x, delta, ones, ones, torch.empty_like(x, dtype=dtype))
        weight = torch.randn(config.mlp_ratio * config.width, config.width, device=args.device)
        LinearGelu(weight, weight[:, 0], torch.bfloat16, activation)(x)

    sizes = {bucket(count) * length for count in evaluations for length in lengths}
    return [(f"backbone {name} {rows} tokens", functools.partial(run, rows)) for rows in sorted(sizes)]
