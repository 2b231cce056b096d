"""Rates of MAR-B's head and backbone, in GFLOP/s, against the matmul peak of the same run.

The head has 6 blocks of 1024 and runs its loop of 100 diffusion steps; its rows are unguided tokens. Its FLOPs are
those of every product in every step, 2·rows·W·((5·L + 2)·W + C + O), including the hoisted ones. The backbone has 12 +
12 blocks of 768 and runs once over images half of whose 256 tokens are known; its FLOPs are those of products and
attention. Noise, normalisation and the posterior count as zero, so their time lowers the rate. The peak is the fastest
of five 2048³ products, measured beside each figure.

It takes about 2 minutes. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.head --quick
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import command, without_zero_init
from fluid_kernels.head_loop import HeadWeights, Rows
from fluid_kernels.loops.torch_loop import TorchHead
from model.inference.heads.chains import make_chains
from model.inference.precision import choose_dtype, pack
from model.networks.diffusion_head import DiffusionHead
from model.networks.mar import ClassContext, Mar
from model.presets import MAR_PRESETS

STEPS = 100
PEAK_SIZE = 2048
Case = tuple[int, int, Callable[[], object]]  # rows or images, FLOPs, the work


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the fastest of `repeats` calls: the machine's speed without interference."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def run(quick: bool) -> dict[str, Any]:
    """Print a table of each part; return the figures."""
    dtype = choose_dtype("auto", torch.device("cpu"))
    table = Table(dtype, rounds=1 if quick else 3)
    with torch.inference_mode():
        print(f"{'head, rows':>15s}{'ms/step':>9s}{'GFLOP/s':>10s}{'of peak':>10s}")
        for rows, flops, work in head_cases(dtype):
            table.measure("head", rows, flops, work, STEPS)
        print(f"backbone{'images':>7s}{'ms/pass':>9s}{'GFLOP/s':>10s}{'of peak':>10s}")
        for images, flops, work in backbone_cases(dtype):
            table.measure("backbone", images, flops, work, 1)
    return table.figures


class Table:
    """Prints a line per case, and keeps its figures."""

    def __init__(self, dtype: torch.dtype, rounds: int):
        self.figures: dict[str, Any] = {}
        self._square, self._rounds = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype), rounds

    def measure(self, part: str, size: int, flops: int, work: Callable[[], object], steps: int) -> None:
        """Time `work` of so many FLOPs in so many steps, and the peak beside it."""
        work()
        shares, rates = [], []
        for _ in range(self._rounds):
            peak = 2 * PEAK_SIZE**3 / seconds(lambda: self._square @ self._square, 5)
            rates.append(flops / seconds(work, 1))
            shares.append(rates[-1] / peak)
        rate, share = statistics.median(rates), statistics.median(shares)
        print(f"{size:15d}{flops / rate / steps * 1e3:9.2f}{rate / 1e9:10.0f}{share:10.2f}")
        self.figures |= {f"{part}_gflops_{size}": round(rate / 1e9), f"{part}_share_of_peak_{size}": round(share, 3)}
        self.figures["matmul_peak_gflops"] = round(rates[-1] / shares[-1] / 1e9)


def head_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Yield the sampling loop for growing numbers of rows."""
    config = MAR_PRESETS["mar-b"]
    head = without_zero_init(DiffusionHead(config))
    weights = HeadWeights.from_head(head)
    loop, chains = TorchHead(weights, dtype), make_chains(head, (STEPS,))
    width, depth = weights.width, weights.depth
    for count in (2, 16, 64, 256, 1024):
        rows = Rows(
            condition=head.embed_condition(torch.randn(count, config.width)), guided=torch.empty(0, dtype=torch.int64),
            chain=torch.zeros(count, dtype=torch.int64), guidance=torch.ones(count), temperature=torch.ones(count),
            seed=torch.arange(count), position=torch.arange(count) % 256,
        )  # fmt: skip
        flops = 2 * count * width * ((5 * depth + 2) * width + weights.channels + len(weights.out)) * STEPS
        yield count, flops, lambda rows=rows: loop(rows, chains, "eps", 0.0)  # type: ignore[misc]


def backbone_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Yield one pass of the packed backbone for growing numbers of images; PyTorch counts the FLOPs before packing."""
    config = MAR_PRESETS["mar-b"]
    model = without_zero_init(Mar(config))
    known = torch.arange(config.tokens) % 2 == 0
    cases = []
    for images in (1, 2, 8, 16):
        tokens, classes = torch.randn(images, config.tokens, config.channels), model.backbone.classes.weight[:images]
        args = (tokens, known.expand(images, -1), ClassContext(classes))
        cases.append((images, count_flops(lambda args=args: model.backbone(*args)), args))  # type: ignore[misc]
    pack(model, dtype)
    for images, flops, args in cases:
        yield images, flops, lambda args=args: model.backbone(*args)  # type: ignore[misc]


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of products and attention; PyTorch's counter does not know the attention of CPUs."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={attention: attention_flops}) as counter:
        work()
    return int(counter.get_total_flops())


def attention_flops(query: Sequence[int], key: Sequence[int], *_: object, **__: object) -> int:
    """Two products of (B, H, N, d) with (B, H, M, d), as their shapes are given."""
    batch, heads, queries, dim = query
    return 4 * batch * heads * queries * key[2] * dim


def main(argv: list[str] | None = None) -> None:
    command("head", __doc__, "one round instead of three", run, argv)


if __name__ == "__main__":
    main()
