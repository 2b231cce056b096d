"""Sweep of tiles: every tile of the table at the shapes of heads and backbones, beside cuBLAS.

    silu    u = silu(n Wᵀ)            a head's up product
    gated   h += gate·(u Wᵀ)          a head's down product
    plain   mod = y Wᵀ                a head's hoisted modulation
    gelu    y = gelu(x Wᵀ)            a backbone's MLP; the library's side is its product, then torch's GELU

One record a shape: the time of every tile, the fastest, the one that the rule of configs.py chooses, and cuBLAS's.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.gpu.cases import MODELS
from benchmarks.gpu.head import seconds
from benchmarks.gpu.parts import Emit, attempt
from fluid_kernels.configs import Config, backend_of, linear_config, linear_configs
from fluid_kernels.ops.gated_residual import WIDEST, gated_residual
from fluid_kernels.ops.linear_triton import linear
from model.config import MarConfig

EVALUATIONS = (2, 16, 64, 128, 512, 2048)
REPEATS = 20  # launches in one graph: a launch from Python takes longer than most of these products


@dataclass(frozen=True)
class Case:
    """One shape: `rows` rows, `inner` to `columns`."""

    kind: str
    model: str
    rows: int
    columns: int
    inner: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.model} {self.rows} x {self.columns} x {self.inner}"

    @property
    def tiles(self) -> list[Config]:
        """Tiles that this operation may have on this device."""
        backend = backend_of(torch.device(self.device))
        found = [self.chosen] if backend == "cpu" else linear_configs(backend, torch.bfloat16)
        return [tile for tile in found if self.kind != "gated" or tile.n <= WIDEST]

    @property
    def chosen(self) -> Config:
        widest = WIDEST if self.kind == "gated" else 256
        return linear_config(backend_of(torch.device(self.device)), self.rows, self.columns, torch.bfloat16, widest)

    @functools.cached_property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=self.device).bfloat16()

        step = torch.zeros(3, dtype=torch.int32, device=self.device)
        x, weight = normal(self.rows, self.inner), normal(self.columns, self.inner) * self.inner**-0.5
        h = torch.zeros(self.rows if self.kind == "gated" else 0, self.columns, device=self.device)
        return x, weight, normal(self.columns), normal(self.rows, self.columns), step, h

    @functools.cached_property
    def _wide_bias(self) -> torch.Tensor:
        return self._tensors[2].float()

    def run(self, tile: Config) -> None:
        """Launch the operation once with this tile."""
        x, weight, _, y, step, h = self._tensors
        if self.kind == "gated":
            gated_residual(h, x, weight, self._wide_bias, y[None], step, tile)
        else:
            activation = {"silu": "silu", "plain": "", "gelu": gelu_of(self.model)}[self.kind]
            linear(x, weight, self._wide_bias, y, activation, tile)

    def library(self) -> None:
        """The same by torch's operations, without a gate."""
        x, weight, bias, *_ = self._tensors
        y = F.linear(x, weight, bias)
        if self.kind == "silu":
            F.silu(y)
        if self.kind == "gelu":
            F.gelu(y, approximate="tanh" if gelu_of(self.model) == "gelu_tanh" else "none")


def gelu_of(model: str) -> str:
    """The form of GELU in a named model."""
    return "gelu_erf" if isinstance(MODELS[model], MarConfig) else "gelu_tanh"


def sweep(args: argparse.Namespace) -> Iterator[Case]:
    """Every shape that is measured."""
    names = ("mar-small",) if args.quick else args.models
    widths = set[int]()
    for name in names:
        config = MODELS[name]
        w = config.head_width
        if w not in widths:
            for rows in (2,) if args.quick else EVALUATIONS:
                yield Case("silu", name, rows, w, w, args.device)
                yield Case("gated", name, rows, w, w, args.device)
            hoisted = (3 * config.head_depth + 2) * w
            yield Case("plain", name, 8 if args.quick else 1024, hoisted, w, args.device)
            widths.add(w)
        length = config.tokens + (config.buffer if isinstance(config, MarConfig) else 0)
        for evaluations in (1,) if args.quick else (2, 128):
            rows = 8 if args.quick else evaluations * length
            yield Case("gelu", name, rows, config.mlp_ratio * config.width, config.width, args.device)


def bench_tiles(args: argparse.Namespace, emit: Emit) -> None:
    """Time every tile at every shape, and the library."""
    for case in sweep(args):
        about = {"kind": case.kind, "model": case.model, "rows": case.rows, "columns": case.columns}
        with attempt(emit, about) as record, torch.inference_mode():
            times = {label(tile): graph_us(functools.partial(case.run, tile), args) for tile in case.tiles}
            best = min(times, key=lambda key: times[key])
            record |= {
                "chosen": label(case.chosen), "chosen_us": times[label(case.chosen)], "best": best,
                "best_us": times[best], "library_us": graph_us(case.library, args), "tiles_us": times,
            }  # fmt: skip


def label(tile: Config) -> str:
    return f"{tile.m}x{tile.n}x{tile.k}"


def graph_us(work: Callable[[], object], args: argparse.Namespace) -> float:
    """Microseconds of one launch among REPEATS in a CUDA graph; of one call on a CPU."""
    if args.device == "cpu":
        return round(1e6 * seconds(work, args.device, 1), 2)
    work()  # compiles; a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            work()
    return round(1e6 * seconds(graph.replay, args.device, 5) / REPEATS, 2)
