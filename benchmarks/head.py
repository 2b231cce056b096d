"""Rate of the head's sampling loop at MAR-B's size, in GFLOP/s, against the matmul peak of the same run.

Rows are unguided tokens; the head has 6 blocks of 1024 and runs 100 diffusion steps. FLOPs are those of every product
of the head in every step, 2·rows·W·((5·L + 2)·W + C + O), including the hoisted ones. Noise, normalisation and the
posterior count as zero, so their time lowers the rate. The peak is the fastest of five 2048³ products, measured
beside each figure.

It takes under 1 minute. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.head --quick
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.machine import command, without_zero_init
from fluid_kernels.head_loop import HeadWeights, Rows
from fluid_kernels.loops.torch_loop import TorchHead
from model.inference.heads.chains import make_chains
from model.inference.precision import choose_dtype
from model.networks.diffusion_head import DiffusionHead
from model.presets import MAR_PRESETS

STEPS = 100
PEAK_SIZE = 2048


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the fastest of `repeats` calls: the machine's speed without interference."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def run(quick: bool) -> dict[str, Any]:
    """Print the table; return the figures."""
    config, dtype = MAR_PRESETS["mar-b"], choose_dtype("auto", torch.device("cpu"))
    head = without_zero_init(DiffusionHead(config))
    weights = HeadWeights.from_head(head)
    loop, chains = TorchHead(weights, dtype), make_chains(head, (STEPS,))
    width, depth = weights.width, weights.depth
    a = torch.randn(PEAK_SIZE, PEAK_SIZE).to(dtype)
    result: dict[str, Any] = {}
    print(f"{'rows':>6s}{'ms/step':>10s}{'GFLOP/s':>10s}{'of peak':>10s}")
    for count in (2, 16, 64, 256, 1024):
        rows = Rows(
            condition=head.embed_condition(torch.randn(count, config.width)), guided=torch.empty(0, dtype=torch.int64),
            chain=torch.zeros(count, dtype=torch.int64), guidance=torch.ones(count), temperature=torch.ones(count),
            seed=torch.arange(count), position=torch.arange(count) % 256,
        )  # fmt: skip
        flops = 2 * count * width * ((5 * depth + 2) * width + weights.channels + len(weights.out)) * STEPS
        shares, rates = [], []
        with torch.inference_mode():
            loop(rows, chains, "eps", 0.0)
            for _ in range(1 if quick else 3):
                peak = 2 * PEAK_SIZE**3 / seconds(lambda: a @ a, 5)
                rates.append(flops / seconds(lambda rows=rows: loop(rows, chains, "eps", 0.0), 1))  # type: ignore[misc]
                shares.append(rates[-1] / peak)
        rate, share = statistics.median(rates), statistics.median(shares)
        print(f"{count:6d}{flops / rate / STEPS * 1e3:10.2f}{rate / 1e9:10.0f}{share:10.2f}")
        result[f"head_gflops_{count}"], result[f"head_share_of_peak_{count}"] = round(rate / 1e9), round(share, 3)
    result["matmul_peak_gflops"] = round(rates[-1] / shares[-1] / 1e9)
    return result


def main(argv: list[str] | None = None) -> None:
    command("head", __doc__, "one round instead of three", run, argv)


if __name__ == "__main__":
    main()
