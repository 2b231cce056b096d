"""Verdict for every figure of a soak test, its table and its plot."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.soak.trends import Trend, trend

Line = dict[str, Any]
Series = tuple[list[float], list[float]]  # times in seconds, values

#: The first samples are not judged: caches and allocators fill, and the first records have not expired yet.
WARM_UP_S, WARM_UP_SHARE = 600.0, 0.15
#: Image files outlive their records by this (server/queue/lease_queue.py), tombstones by a day.
IMAGE_EXTRA_S, TOMBSTONE_S = 3600.0, 86400.0
TABLE_BYTES = 64  # of a key with a time to live, beside what MEMORY USAGE counts (measured over 150,000 keys)
#: Least rise over a run that counts, by the end of a figure's name. One slow page of an allocator is no leak.
FLOORS = {
    "_rss_mib": 1.0, "_fds": 2.0, "_threads": 1.0, "keys_without_ttl": 3.0, "keys_unexplained": 100.0,
    "used_unexplained_mib": 5.0, "clients": 2.0, "channels": 1.0, "queued": 2.0, "running": 2.0, "p50_ms": 1.0,
    "p99_ms": 5.0,
}  # fmt: skip
#: Valkey's memory and keys grow by contract, so what is judged is the part that the contract does not explain.
NOT_JUDGED = ("keys", "used_mib", "valkey_rss_mib", "ended", "succeeded", "redeliveries", "keys_kept")
BY_CONTRACT = ("tombstone", "result", "idempotency")
PLOTTED = {
    "memory of the processes, MiB": "_rss_mib", "descriptors": "_fds", "keys of Redis": "keys_",
    "latency, ms": "p50_ms p99_ms",
}  # fmt: skip


def judge(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the facts of a run, the trend of each figure, and the names of those that grow."""
    start = next((line for line in lines if line["kind"] == "start"), {})
    samples = _samples(lines)
    windows = [line for line in lines if line["kind"] == "window"]
    trends = {name: found for name, series in all_series(lines).items() if (found := _judge(name, *series))}
    duration = samples[-1]["at"] - samples[0]["at"] if samples else 0.0
    last = samples[-1] if samples else {}
    return {
        **{name: value for name, value in start.items() if name not in ("kind", "at")},
        "minutes": round(duration / 60, 1), "samples": len(samples),
        "images": last.get("succeeded"), "ended": last.get("ended"), "redeliveries": last.get("redeliveries"),
        "failed": sum(sum(line.get("failed", {}).values()) for line in windows),
        "hung_windows": sum(bool(line.get("hung")) for line in windows),
        "visitors": next(({k: v for k, v in line.items() if k not in ("kind", "at")} for line in reversed(lines)
                          if line["kind"] == "visitors"), {}),
        "cpu_ms_per_image": _cpu_ms_per_image(samples),
        "bytes_per_key": next((line["bytes"] for line in reversed(lines) if line["kind"] == "keys"), {}),
        "keys": next((line["counts"] for line in reversed(lines) if line["kind"] == "keys"), {}),
        "trends": {name: _rounded(found) for name, found in trends.items()},
        "grows": [name for name, found in trends.items() if found.verdict == "grows"],
        "ended_early": next((line["reason"] for line in lines if line["kind"] == "ended_early"), None),
    }  # fmt: skip


def all_series(lines: Sequence[Line]) -> dict[str, Series]:
    """Return every series of a run that is judged or plotted, warm-up included."""
    series: dict[str, Series] = {}

    def add(name: str, at: float, value: float) -> None:
        times, values = series.setdefault(name, ([], []))
        times.append(at)
        values.append(value)

    for line, kept in zip(_samples(lines), _kept_by_contract(lines), strict=True):
        for name, value in line.items():
            if name not in ("kind", "at"):
                add(name, line["at"], value)
        add("keys_kept", line["at"], kept[0])
        add("used_unexplained_mib", line["at"], line["used_mib"] - kept[1])
    for line in lines:
        if line["kind"] == "keys" and (kept_at := series.get("keys_kept")):
            # Of a scan, not of DBSIZE: that counts keys that have expired and that Redis has not reclaimed.
            place = max(0, bisect_right(kept_at[0], line["at"]) - 1)
            add("keys_unexplained", line["at"], sum(line["counts"].values()) - kept_at[1][place])
            for name, count in line["counts"].items():
                if name not in BY_CONTRACT:
                    add(f"keys_{name}", line["at"], count)
        elif line["kind"] == "window" and not line.get("hung"):
            for name in ("p50_ms", "p99_ms"):
                if line[name] is not None:
                    add(name, line["at"], line[name])
    return series


def _samples(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["kind"] == "sample"]


def _kept_by_contract(lines: Sequence[Line]) -> Iterator[tuple[float, float]]:
    """Yield, for each sample, how many keys Redis must still hold of ended jobs, and the MiB that they take.

    Those are a tombstone for each job, a file for each image of the last hour, and the Idempotency-Keys.
    """
    samples = _samples(lines)
    times = [line["at"] for line in samples]
    scans = [line for line in lines if line["kind"] == "keys"]
    ttl_s = next((line["ttl_s"] for line in lines if line["kind"] == "start"), 0)
    size = dict.fromkeys(BY_CONTRACT, 0.0) | (scans[-1]["bytes"] if scans else {})

    def before(name: str, at: float) -> float:
        """Return a count at a time in the past; zero before the first sample."""
        place = bisect_left(times, at)
        return float(samples[place - 1][name]) if place else 0.0

    for line in samples:
        counts = {
            "tombstone": line["ended"] - before("ended", line["at"] - TOMBSTONE_S),
            "result": line["succeeded"] - before("succeeded", line["at"] - ttl_s - IMAGE_EXTRA_S),
            "idempotency": _interpolated(scans, "idempotency", line["at"]),
        }
        yield sum(counts.values()), sum(count * (size[kind] + TABLE_BYTES) for kind, count in counts.items()) / 2**20


def _interpolated(scans: Sequence[Line], kind: str, at: float) -> float:
    """Return how many keys of a kind there were at a time between two scans."""
    points = [(line["at"], float(line["counts"].get(kind, 0))) for line in scans]
    place = bisect_left(points, (at, 0.0))
    if not points or place in (0, len(points)):
        return points[min(place, len(points) - 1)][1] if points else 0.0
    (begin, low), (end, high) = points[place - 1], points[place]
    return low + (high - low) * (at - begin) / (end - begin)


def _judge(name: str, times: list[float], values: list[float]) -> Trend | None:
    if name in NOT_JUDGED or name.endswith("_cpu_s"):
        return None
    begin = times[0] + min(WARM_UP_S, WARM_UP_SHARE * (times[-1] - times[0]))
    place = bisect_left(times, begin)
    floor = next((floor for end, floor in FLOORS.items() if name.endswith(end)), 0.0)
    return trend(times[place:], values[place:], floor)


def _cpu_ms_per_image(samples: Sequence[Line]) -> float | None:
    if len(samples) < 2 or samples[-1]["succeeded"] == samples[0]["succeeded"]:
        return None
    used = sum(samples[-1][name] - samples[0][name] for name in samples[0] if name.endswith("_cpu_s"))
    return round(1000 * used / (samples[-1]["succeeded"] - samples[0]["succeeded"]), 2)


def _rounded(found: Trend) -> Mapping[str, float | str]:
    figures = {name: float(f"{value:.4g}") for name, value in asdict(found).items()}
    return {**figures, "verdict": found.verdict}


def print_table(result: Mapping[str, Any]) -> None:
    """Print a row per figure: level, slope per hour with its interval, verdict."""
    print(f"\n{result['minutes']:g} minutes, {result['ended']} jobs ended, {result['failed']} requests failed")
    print(f"{'figure':24s}{'median':>10s}{'per hour':>10s}{'99 % interval':>24s}{'noise':>9s}  verdict")
    for name, row in result["trends"].items():
        interval = f"{row['low']:.4g} to {row['high']:.4g}"
        print(
            f"{name:24s}{row['level']:10.5g}{row['per_hour']:10.4g}{interval:>24s}{row['noise']:9.3g}  {row['verdict']}"
        )
    if result["ended_early"]:
        print(f"ended early: {result['ended_early']}")


def plot(lines: Sequence[Line], file: Path) -> Path:
    """Draw memory, descriptors, keys and latency over time; return the file."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 8})
    series = all_series(lines)
    figure, axes = pyplot.subplots(len(PLOTTED), 1, figsize=(8, 9), sharex=True)
    for axis, (title, names) in zip(axes, PLOTTED.items(), strict=True):
        for name, (times, values) in series.items():
            if any(name.endswith(end) or (end == "keys_" and name in ("keys_without_ttl", "keys_unexplained"))
                   for end in names.split()):  # fmt: skip
                axis.plot([at / 60 for at in times], values, linewidth=0.8, label=name)
        axis.set(title=title, ylim=(0, None))
        if axis.lines:
            axis.legend(frameon=False, fontsize=6, loc="lower right")
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return file
