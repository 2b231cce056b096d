"""Growth of the cost per image with rows, tokens and model size; writes docs/images/growth.png.

The shipped model's shape with random weights, 16 autoregressive x 25 diffusion steps, guidance on; one dimension
varies at a time, and growth is compared with proportional growth. All shapes of a sweep alternate within a round;
figures are medians over rounds.

It takes about 3 minutes, and under 1 with --quick. It prints a table and, last, one JSON object. Example:

    python -m benchmarks.growth --quick
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.gpu.cases import decode
from benchmarks.machine import command, without_zero_init
from model.config import FluidConfig, TextConfig
from model.inference.engine import Engine
from model.inference.precision import choose_dtype, pack
from model.inference.prompts import TextPrompts
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from model.networks.transformer import count_parameters
from model.presets import PRESETS

BASE = replace(PRESETS["emoji-64"], text=TextConfig(kind="hash", name="words", dim=64, max_tokens=24))
PLOT = Path("docs/images/growth.png")


def engine_of(config: FluidConfig, rows: int) -> tuple[Engine, int]:
    """Return an engine with random weights, and its number of parameters."""
    torch.manual_seed(0)
    model, dtype = without_zero_init(Fluid(config)), choose_dtype("auto", torch.device("cpu"))
    size = count_parameters(model)
    pack(model, dtype)
    return Engine(model, TextPrompts(model, HashEncoder(config.text)), rows, dtype), size


def decoding_s(engine: Engine, rows: int) -> float:
    """Decode `rows` images together; return the seconds."""
    begin = time.perf_counter()
    decode(engine, [Request("a red apple", i, Sampling()) for i in range(rows)])
    return time.perf_counter() - begin


def sweep(name: str, cases: dict[int, Callable[[], float]], rounds: int) -> dict[int, float]:
    """Run the cases alternately; return the median seconds of each."""
    times: dict[int, list[float]] = {case: [] for case in cases}
    for work in cases.values():
        work()
    for _ in tqdm(range(rounds), desc=name, leave=False):
        for case, work in cases.items():
            times[case].append(work())
    return {case: statistics.median(values) for case, values in times.items()}


def run(quick: bool, plot: Path | None = PLOT) -> dict[str, Any]:
    """Print the table and write the plot; return the figures."""
    rounds = 1 if quick else 3
    result: dict[str, Any] = {}
    base, _ = engine_of(BASE, 32)
    rows = (1, 4) if quick else (1, 2, 4, 8, 16, 32)
    result["rows"] = sweep("rows", {n: lambda n=n: decoding_s(base, n) for n in rows}, rounds)  # type: ignore[misc]
    sides = (4, 8) if quick else (4, 8, 12, 16)
    grids = {side**2: engine_of(replace(BASE, image_size=8 * side), 4)[0] for side in sides}
    result["tokens"] = sweep("tokens", {n: lambda e=e: decoding_s(e, 4) for n, e in grids.items()}, rounds)  # type: ignore[misc]
    widths = (128, 256) if quick else (128, 256, 384, 512, 768)
    sizes = {}
    for width in widths:
        config = replace(BASE, width=width, heads=width // 64, head_width=width, aligner_width=width)
        engine, size = engine_of(config, 4)
        sizes[size] = engine
    result["parameters"] = sweep("parameters", {n: lambda e=e: decoding_s(e, 4) for n, e in sizes.items()}, rounds)  # type: ignore[misc]
    images = {"rows": None, "tokens": 4, "parameters": 4}  # decoded together; of "rows", as many as the case says
    for name, count in images.items():
        print(f"{name:>12s}{'s/image':>12s}")
        result[name] = {case: round(seconds / (count or case), 4) for case, seconds in result[name].items()}
        for case, seconds in result[name].items():
            print(f"{case:12d}{seconds:12.3f}")
    if plot is not None:
        save_plot(result, plot)
        print(f"plot: {plot}")
    return result


def save_plot(result: dict[str, Any], file: Path) -> None:
    """Plot seconds per image in three log-log panels; a dotted line shows proportional growth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    labels = {"rows": "images decoded together", "tokens": "tokens per image", "parameters": "parameters"}
    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for panel, (name, label) in zip(panels, labels.items(), strict=True):
        x, y = list(result[name]), list(result[name].values())
        panel.loglog(x, y, "o-", color="tab:blue")
        if name != "rows":
            panel.loglog(x, [y[0] * case / x[0] for case in x], ":", color="grey")
        panel.set(xlabel=label, ylabel="seconds per image", ylim=(0.04, 0.8))
        panel.set_xticks(x, [f"{case / 1e6:.0f}M" if name == "parameters" else str(case) for case in x])
        panel.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    command(
        "growth",
        __doc__,
        "two cases per sweep, one round, no plot",
        lambda quick: run(quick, None if quick else PLOT),
        argv,
    )


if __name__ == "__main__":
    main()
