"""Writes the figures of a saved run into docs/benchmarks.md and README.md, and draws the plot that the former shows."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.report import PLOT, plot_throughput
from benchmarks.peers.sides import NAMES, PEERS, ROOT

BEGIN, END = "<!-- peers -->", "<!-- end -->"
CLOSED = {
    "p50_ms_equal_1": "1 caller, p50 ms", "equal_16": "16", "equal_64": "64", "equal_256": "256",
    "mixed_16": "16, mixed", "mixed_64": "64, mixed", "mixed_256": "256, mixed",
}  # fmt: skip
COSTS = {"cpu_ms_per_image": "CPU, ms/image", "memory_mib": "MiB"}
LATENCY = {
    "capacity": "capacity, images/s", "at_50_p50_ms": "50 %: p50", "at_50_p99_ms": "p99", "at_80_p50_ms": "80 %: p50",
    "at_80_p99_ms": "p99",
}  # fmt: skip
KILLED = {"lost": "lost of 32", "hung": "of these hung", "serves_again_s": "serves again after, s"}
MODEL = {"equal_1": "1 caller", "equal_16": "16", "mixed_16": "16, mixed"}
LOW_IS_BETTER = ("_ms", "mib", "lost", "hung", "_s")
README_SIDES = (("ours",), (), ("litserve", "ray", "bentoml"), ("by_hand",))  # a cell each
README_ROWS = {
    "images/s, 64 callers with equal settings": ("throughput", "equal_64"),
    "images/s, 64 callers with mixed settings": ("throughput", "mixed_64"),
    "images lost of 32 when the worker is killed": ("killed", "lost"),
}
FIRST_README_ROW = "| images/s, 64 callers"


def write(file: Path, root: Path = ROOT, plot: Path = PLOT) -> list[Path]:
    """Fill both pages from a saved run, and draw the plot; return what was written.

    Raises:
        ValueError: a page has no place for the figures.
    """
    result = json.loads(file.read_text())
    docs, readme = root / "docs" / "benchmarks.md", root / "README.md"
    docs.write_text(fill_benchmarks(docs.read_text(), result, file.name))
    readme.write_text(fill_readme(readme.read_text(), result))
    return [docs, readme, plot_throughput(result["throughput"], plot)]


def fill_benchmarks(page: str, result: Mapping[str, Any], name: str) -> str:
    """Return the page with its block between the markers replaced by the tables of this run."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/benchmarks.md has no {BEGIN} ... {END}")
    return "\n".join([f"{before}{BEGIN}", *_block(result, name), f"{END}{after}"])


def fill_readme(page: str, result: Mapping[str, Any]) -> str:
    """Return the page with the rows of figures of its comparison replaced."""
    lines = page.split("\n")
    old = [number for number, line in enumerate(lines) if line.startswith(tuple(f"| {title}" for title in README_ROWS))]
    if not old or not lines[old[0]].startswith(FIRST_README_ROW):
        raise ValueError(f"README.md has no row that begins with {FIRST_README_ROW!r}")
    cores = result["machine"]["cores"]
    rows = []
    for title, (part, figure) in README_ROWS.items():
        cells = [
            ", ".join(_number(result.get(part, {}).get(side, {}).get(figure)) for side in group)
            for group in README_SIDES
        ]
        if any(cells):
            about = f", one fake model, {cores} cores" if part == "throughput" else ""
            rows.append(f"| {title}{about} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join([*lines[: old[0]], *rows, *lines[old[-1] + 1 :]])


def _block(result: Mapping[str, Any], name: str) -> list[str]:
    machine = result["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in result["peers"].items())
    about = (
        f"{machine['date']}, {machine['cores']} cores of an {machine['cpu']}, `wrk` on the same cores; {versions}; "
        f"[figures](../benchmarks/results/{name}). One image is 20 steps of a 2 ms sleep, or mixed 8, 20 and 64; up to "
        "16 images share a step. Bold is the best of a column."
    )
    lines = [
        *textwrap.wrap(about, 120, break_long_words=False, break_on_hyphens=False), "",
        "![Images per second by callers, for each server](images/peers.svg)", "",
        "Images/s by callers in a closed loop; processor time and memory of all processes at 64 callers:", "",
        *_table(result.get("throughput", {}), CLOSED | COSTS), "",
        *_leads(result.get("throughput", {})), "",
        "Latency in ms at 50 and 80 % of each one's own capacity (-: too few requests for a p99):", "",
        *_table(result.get("latency", {}), LATENCY), "",
    ]  # fmt: skip
    if added := result.get("added"):
        ours, hand = added.get("ours", {}), added.get("by_hand", {})
        lines += [
            "Added latency at 100 requests/s with steps that cost nothing, p50 / p99: Fluid Serve "
            f"{_number(ours.get('added_p50_ms'))} / {_number(ours.get('added_p99_ms'))} ms,",
            f"FastAPI by hand {_number(hand.get('added_p50_ms'))} / {_number(hand.get('added_p99_ms'))} ms.", "",
        ]  # fmt: skip
    lines += [
        "The process of the engine killed under the load of 32 callers:",
        "",
        *_table(result.get("killed", {}), KILLED),
    ]
    if "model" in result:
        lines += ["", "Images/s of the shipped model, `atlas-128`, 8 steps or mixed 4, 8 and 16:", ""]
        lines += _table(result["model"], MODEL)
    return lines


def _table(table: Mapping[str, Mapping[str, float | None]], columns: Mapping[str, str]) -> list[str]:
    """Return the lines of a Markdown table, a row per side; the best of each column is bold."""
    shown = {key: head for key, head in columns.items() if any(row.get(key) is not None for row in table.values())}
    best = {key: _best(table, key) for key in shown}
    lines = [f"| | {' | '.join(shown.values())} |", f"|---|{'---|' * len(shown)}"]
    for side, row in table.items():
        cells = [f"**{_number(row.get(key))}**" if side in best[key] else _number(row.get(key)) for key in shown]
        lines.append(f"| {NAMES[side]} | {' | '.join(cells)} |")
    return lines


def _best(table: Mapping[str, Mapping[str, float | None]], key: str) -> set[str]:
    """Return the sides with the best value of a column; none if all have the same."""
    values = {side: value for side, row in table.items() if (value := row.get(key)) is not None}
    low = any(part in key for part in LOW_IS_BETTER)
    best = min(values.values()) if low else max(values.values())
    found = {side for side, value in values.items() if value == best}
    return found if len(found) < len(table) else set()


def _leads(table: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return a sentence that says in which columns ours is first, and by how much it is behind in the others."""
    first, behind = [], []
    for key, head in CLOSED.items():
        values = {side: value for side, row in table.items() if (value := row.get(key))}
        if "ours" not in values or not values.keys() & set(PEERS):
            continue
        best = (min if "_ms" in key else max)(value for side, value in values.items() if side != "ours")
        ratio = best / values["ours"] if "_ms" in key else values["ours"] / best
        (first if ratio >= 1 else behind).append(f"{head} ({ratio:.2f}x)")
    text = f"Fluid Serve is first at: {'; '.join(first) or 'none'}."
    text += f" It is behind the best other at: {'; '.join(behind)}." if behind else ""
    return textwrap.wrap(text, 120, break_long_words=False)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return re.sub(r"\.0$", "", f"{value:.1f}") if abs(value) < 20 else f"{value:.0f}"
