"""Tables of the comparison, and the plot of throughput by callers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.parts import SETTINGS, Table
from benchmarks.peers.sides import NAMES

PLOT = Path(__file__).parent.parent.parent / "docs" / "images" / "peers.svg"
COLUMNS = {
    "throughput": {
        "p50_ms_equal_1": "1, p50 ms", "equal_1": "1", "equal_16": "16", "equal_64": "64", "equal_256": "256",
        "mixed_16": "16 mixed", "mixed_64": "64 mixed", "mixed_256": "256 mixed",
        "cpu_ms_per_image": "CPU ms", "memory_mib": "MiB",
    },
    "latency": {
        "capacity": "images/s", "at_50_p50_ms": "50 % p50", "at_50_p99_ms": "50 % p99", "at_80_p50_ms": "80 % p50",
        "at_80_p99_ms": "80 % p99", "at_80_late_ms": "late ms", "at_80_images": "images",
    },
    "added": {"added_p50_ms": "p50 ms", "added_p99_ms": "p99 ms", "added_images": "images"},
    "killed": {
        "in_flight": "in flight", "lost": "lost", "hung": "hung", "failed_after": "failed", "serves_again_s": "back s",
        "longest_wait_s": "longest s",
    },
    "model": {"equal_1": "1", "equal_16": "16", "mixed_16": "16 mixed"},
}  # fmt: skip
TITLES = {
    "throughput": "Images/s by callers, 20 steps each or 8, 20 and 64 mixed; CPU time per image and memory at 64",
    "latency": "Latency in ms at 50 and 80 % of each one's own capacity",
    "added": "Latency in ms at 100 requests/s, steps that cost nothing",
    "killed": "The process of the engine killed under load of 32 callers",
    "model": "Images/s of the shipped model by callers",
}


def print_table(part: str, table: Table) -> None:
    """Print one part, a row per side, and below it the requests that failed in its measurements, if any."""
    columns = {key: head for key, head in COLUMNS[part].items() if any(key in row for row in table.values())}
    print(f"\n{TITLES[part]}\n{'':18s}" + "".join(f"{head:>10s}" for head in columns.values()))
    for name, row in table.items():
        cells = [row.get(key) for key in columns]
        print(f"{NAMES[name]:18s}" + "".join(f"{'-' if cell is None else f'{cell:.5g}':>10s}" for cell in cells))
    if part != "killed":
        for name, row in table.items():
            for key, value in row.items():
                if "failed" in key and value:
                    print(f"{NAMES[name]}: {value:g} requests {key.replace('_', ' ')}")


def plot_throughput(table: Table, file: Path = PLOT) -> Path:
    """Draw images/s by callers, equal and mixed settings side by side; return the file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(SETTINGS), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, kind in zip(axes, SETTINGS, strict=True):
        for name, row in table.items():
            points = {int(key.rpartition("_")[2]): v for key, v in row.items() if key.rpartition("_")[0] == kind and v}
            style = {"linewidth": 2.5, "color": "black"} if name == "ours" else {"linewidth": 1.2}
            axis.plot(list(points), list(points.values()), marker=".", label=NAMES[name], **style)
        axis.set(title=f"{kind} settings", xlabel="callers", xscale="log", ylim=(0, None))
        axis.set_xticks(sorted(points), [str(callers) for callers in sorted(points)], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("images/s")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
