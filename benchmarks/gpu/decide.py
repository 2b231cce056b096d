"""What a measurement decides: the path behind FLUID_KERNELS=auto.

    python -m benchmarks.gpu decide PLACE [PLACE ...]

reads gpu-first*.json and gpu-second*.json of folders, or the files named. A path whose check failed is out, whatever
its speed. Of the others, `auto` becomes the one with the least time for an image of 64 x 100 steps, averaged
geometrically over models and over 1, 8 and 64 images together. Records of paths that have been deleted are passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.inference.orders import tokens_per_step

BATCHES = (1, 8, 64)
PATHS = ("torch", "triton")
CHECKS = ("image", "batch", "head")  # parts whose records have a path and `ok`
Key = tuple[str, int]  # model, images together


@dataclass(frozen=True)
class Verdict:
    """The decision. seconds: of the head's loop, for one image, by path."""

    auto: str | None  # None: nothing was measured
    wrong: dict[str, str]  # path -> why it is out
    seconds: dict[Key, dict[str, float]]
    best: dict[Key, str]

    def lines(self) -> list[str]:
        """The decision in words."""
        found = [f"{path} is out: {why}" for path, why in self.wrong.items()]
        for (model, batch), path in self.best.items():
            times = ", ".join(f"{p} {1e3 * s:.1f} ms" for p, s in self.seconds[model, batch].items())
            found.append(f"{model}, {batch} together: {path} ({times} an image)")
        if self.auto is None:
            return [*found, "auto: not decided, no path was measured for a whole image"]
        found.append(f"auto: {self.auto} on CUDA (choose_path in kernels/fluid_kernels/heads.py)")
        return found


def decide(results: Iterable[dict[str, Any]]) -> Verdict:
    """Decide from results as parts.py writes them; of a path measured twice, the later result counts."""
    failed: dict[tuple[str, str], str] = {}  # (path, part) -> why
    steps: dict[tuple[str, str], dict[int, float]] = {}  # (model, path) -> rows -> seconds of a step
    for result in results:
        for name, part in result["parts"].items():
            for path in {record.get("path") for record in part["records"]}:
                failed.pop((path, name), None)  # it may have been mended
            for record in part["records"]:
                path = record.get("path")
                if path not in PATHS:
                    continue
                if name in CHECKS and (record.get("ok") is False or record.get("error")):
                    failed[path, name] = f"{name}: {record.get('error') or 'apart from the definition'}"
                if name == "loop" and "us_per_step" in record:
                    steps.setdefault((record["model"], path), {})[record["rows"]] = 1e-6 * record["us_per_step"]
    wrong = {path: why for (path, _), why in failed.items()}
    seconds: dict[Key, dict[str, float]] = {}
    for (model, path), by_rows in steps.items():
        for batch in BATCHES if path not in wrong else ():
            found = image_seconds(by_rows, batch)
            if found is not None:
                seconds.setdefault((model, batch), {})[path] = found
    best = {key: min(times, key=lambda path: times[path]) for key, times in seconds.items()}
    return Verdict(_auto(seconds), wrong, seconds, best)


def image_seconds(by_rows: dict[int, float], batch: int) -> float | None:
    """Seconds of the loop for one of `batch` images, 64 x 100 steps of 256 tokens.

    Between measured numbers of rows the time is interpolated; None where it would have to be guessed beyond the ends.
    """
    sizes = sorted(by_rows)
    total = 0.0
    for count in tokens_per_step(64, 256):
        rows = count * batch
        if not sizes or not sizes[0] <= rows <= sizes[-1]:
            return None
        above = next(size for size in sizes if size >= rows)
        below = max(size for size in sizes if size <= rows)
        share = (rows - below) / (above - below) if above > below else 0.0
        total += 100 * (by_rows[below] + share * (by_rows[above] - by_rows[below]))
    return total / batch


def _auto(seconds: dict[Key, dict[str, float]]) -> str | None:
    """The path with the least geometric mean over the cases that all paths with any figure have."""
    paths = {path for times in seconds.values() for path in times}
    complete = [path for path in PATHS if path in paths]
    while complete:
        shared = [times for times in seconds.values() if all(path in times for path in complete)]
        if shared:
            return min(complete, key=lambda path: sum(math.log(times[path]) for times in shared))
        complete.pop()  # it may have been measured for few rows only
    return None


def read(places: Sequence[Path]) -> list[dict[str, Any]]:
    """The results in these files and folders; of a folder the earlier before the later, call 1 before call 2."""
    files = [file for place in places for file in (_results(place) if place.is_dir() else [place])]
    return [json.loads(file.read_text()) for file in files]


def _results(folder: Path) -> list[Path]:
    return sorted(folder.glob("gpu-*.json"), key=age)


def age(file: Path) -> tuple[str, str]:
    """Sorts results by the date that ends their names, those of a day by call; names without a date are the newest."""
    date = re.search(r"\d{4}-\d\d-\d\d$", file.stem)
    return (date.group() if date else "now", file.name)
