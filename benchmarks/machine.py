"""What a figure was measured on, and how measured figures are kept."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, object]:
    """Processor, threads and versions; enough to judge whether two results can be compared."""
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


def keep(name: str, result: dict[str, object]) -> Path:
    """Write a result under benchmarks/results/, one file per benchmark and day."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{datetime.date.today().isoformat()}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    return file


def command(
    name: str, about: str | None, quick: str, run: Callable[[bool], dict[str, Any]], argv: list[str] | None
) -> None:
    """Of a benchmark that measures one thing: its table, a file unless --quick, JSON as the last line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    args = parser.parse_args(argv)
    result = {"machine": describe_machine(), **run(args.quick)}
    if not args.quick:
        print(f"kept in {keep(name, result)}")
    print(json.dumps(result))


def alive(model: nn.Module) -> Any:
    """Random weights for inference; what is initialised to zero gets values, so that nothing is skipped or exact."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if "modulation" in name or ".out." in f".{name}":
            value.data = torch.randn(value.shape, generator=generator) * 0.5 * value.shape[-1] ** -0.5
    return model.eval().requires_grad_(False)
