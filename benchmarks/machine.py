"""Description of the machine, saved results, and the command line shared by benchmarks with one measurement."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Side = Callable[[int], None]  # generates a batch; the number tells one round's prompts from another's
RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, object]:
    """Describe processor, cores and versions, to tell whether two results are comparable."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*:\s*(.+)", text)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save_result(name: str, result: dict[str, object]) -> Path:
    """Save a result under benchmarks/results/, one file per benchmark and day; return the file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{datetime.date.today().isoformat()}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return file


def alternate(sides: dict[str, Side], batch: int, rounds: int) -> dict[str, float]:
    """Processor seconds of an image on each side: medians of the rounds after one that warms up, sides in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            begin = time.process_time()
            side(turn)
            times[name].append((time.process_time() - begin) / batch)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def command(
    name: str, about: str | None, quick: str, run: Callable[[bool], dict[str, Any]], argv: list[str] | None
) -> None:
    """Run a benchmark's command line: print its table, save the result unless --quick, and print it as JSON last."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{quick}; nothing is saved")
    args = parser.parse_args(argv)
    result = {"machine": describe_machine(), **run(args.quick)}
    if not args.quick:
        print(f"saved to {save_result(name, result)}")
    print(json.dumps(result))


def without_zero_init(model: nn.Module) -> Any:
    """Replace zero initialisation by random values, so that no term vanishes; return the model ready for inference."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "modulation" in name or ".out." in f".{name}":
            value.data = torch.randn(value.shape, generator=generator) * 0.5 * value.shape[-1] ** -0.5
    return model.eval().requires_grad_(False)
