"""The two calls to a borrowed GPU: which parts, in which order, how long each may take.

The first shows that everything is right and gives first timings, the second tunes, and measures larger models and other
people's methods. Compilations come first, in 16 processes. The limits of all parts fit the
budget together, so that a part which hangs costs no other part anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.bench import (
    bench_attention,
    bench_backbones,
    bench_ceilings,
    bench_images,
    bench_loop,
    bench_peers,
    bench_shipped,
    describe,
)
from benchmarks.gpu.check import (
    check_backbone,
    check_batch,
    check_head,
    check_image,
    check_ops,
    check_philox,
    check_systems,
)
from benchmarks.gpu.parts import Emit, Part
from benchmarks.gpu.training_leg import bench_training, limit_s
from benchmarks.gpu.warm import warm_first, warm_second


@dataclass(frozen=True)
class Call:
    """One command on the device."""

    models: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def budget_s(self) -> float:
        """Seconds for all parts."""
        return sum(part.limit_s for part in self.parts)


def only(work: Callable[[Any, Emit], None], *models: str, batches: tuple[int, ...] = (1, 64)) -> Callable[..., None]:
    """Run a part on its own models and batches, unless the command line names models, or is a rehearsal."""

    def run(args: argparse.Namespace, emit: Emit) -> None:
        chosen = {"models": models} if args.own_models and not args.quick else {}
        work(argparse.Namespace(**vars(args) | {"batches": (1, 2) if args.quick else batches} | chosen), emit)

    return run


def bench_tiles(args: argparse.Namespace, emit: Emit) -> None:
    """Sweep the tiles; imported late, because a rehearsal decides in each part whether Triton interprets."""
    from benchmarks.gpu import tuning

    tuning.bench_tiles(args, emit)


FIRST = Call(("mar-b",), (
    Part("compile", 60, warm_first, interpreted=True), Part("machine", 8, describe),
    Part("philox", 8, check_philox, interpreted=True), Part("ops", 20, check_ops, interpreted=True),
    Part("image", 30, check_image, interpreted=True), Part("batch", 20, check_batch),
    Part("backbone", 25, check_backbone), Part("ceilings", 10, bench_ceilings),
    Part("head", 25, check_head, interpreted=True), Part("loop", 20, bench_loop),
    Part("images", 24, only(bench_images, "mar-b")),
))  # fmt: skip


def second(train_minutes: float) -> Call:
    """The second call, with a training leg of this length."""
    models = ("mar-b", "mar-h", "369M", "3.1B")
    return Call(models, (
        Part("compile", 60, warm_second, interpreted=True), Part("machine", 8, describe),
        Part("tiles", 40, bench_tiles, interpreted=True),
        Part("larger", 90, only(bench_images, "369M", "mar-h", "3.1B", batches=(64,))),
        Part("attention", 10, bench_attention), Part("backbones", 25, only(bench_backbones, "mar-b", "369M")),
        Part("systems", 20, check_systems), Part("shipped", 15, bench_shipped),
        Part("peers", 75, only(bench_peers, "mar-b")),
        Part("training", limit_s(train_minutes), bench_training),
    ))  # fmt: skip
