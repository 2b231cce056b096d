"""The soak test finds what grows, however slowly, and calls nothing a leak that noise or the contract explains."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import __main__ as command
from benchmarks.soak import report
from benchmarks.soak.samples import Recorder, read_lines
from benchmarks.soak.trends import theil_sen, trend

HOUR_S = [10.0 * i for i in range(360)]


def noise(level: float, sigma: float, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [level + rng.gauss(0, sigma) for _ in HOUR_S]


def test_the_slope_between_points_on_a_line_is_exact() -> None:
    assert theil_sen([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])[0] == 2.0


def test_one_outlier_moves_no_slope() -> None:
    values = [5.0] * 20
    values[-1] = 1e6
    assert theil_sen([float(i) for i in range(20)], values)[0] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_slope(seed: int) -> None:
    found = trend(HOUR_S, noise(80, 2, seed))
    assert found is not None and found.verdict == "zero within noise" and found.low < 0 < found.high


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_leak_under_noise_is_found(seed: int) -> None:
    """Six MiB an hour beside a scatter of two."""
    leak = [value + 6 * at / 3600 for value, at in zip(noise(80, 2, seed), HOUR_S, strict=True)]
    found = trend(HOUR_S, leak)
    assert found is not None and found.verdict == "grows" and found.per_hour == pytest.approx(6, abs=1.5)


def test_a_rise_below_the_floor_and_a_single_step_are_no_leak() -> None:
    """An allocator that takes one more page, and caches that fill once."""
    slow = trend(HOUR_S, [40 + 0.2 * at / 3600 for at in HOUR_S], floor=1.0)
    step = trend(HOUR_S, [40.0 if at < 1000 else 41.0 for at in HOUR_S], floor=1.5)
    assert slow is not None and slow.verdict == "zero within noise" and slow.low > 0
    assert step is not None and step.verdict == "zero within noise"


def test_what_falls_is_named_and_too_short_a_series_has_no_trend() -> None:
    falls = trend(HOUR_S, [100 - 10 * at / 3600 for at in HOUR_S])
    assert falls is not None and falls.verdict == "falls"
    assert trend(HOUR_S[:5], [1.0] * 5) is None


def recorded(file: Path, *, leaks_fds: bool = False) -> list[dict[str, Any]]:
    """An hour at 10 jobs/s: each leaves a tombstone of 90 bytes and an image file of 1,000, as the contract says."""
    lines: list[dict[str, Any]] = [{"kind": "start", "at": 0.0, "load": 0.7, "ttl_s": 60}]
    for at in HOUR_S:
        ended = round(10 * at)
        lines.append({
            "kind": "sample", "at": at, "gateway_rss_mib": 80.0, "gateway_fds": 50 + (at / 60 if leaks_fds else 0),
            "gateway_cpu_s": at / 10, "keys": 700 + 2 * ended, "keys_without_ttl": 20, "queued": 0, "running": 3,
            "used_mib": 5 + ended * (1090 + 2 * report.TABLE_BYTES) / 2**20, "ended": ended, "succeeded": ended,
            "redeliveries": 0,
        })  # fmt: skip
        if at % 150 == 0:
            counts = {"tombstone": ended, "result": ended, "job": 600}
            lines.append({"kind": "keys", "at": at, "counts": counts, "bytes": {"tombstone": 90, "result": 1000}})
        if at % 60 == 0:
            lines.append(
                {"kind": "window", "at": at, "number": 0, "images": 600, "failed": {}, "p50_ms": 9.0, "p99_ms": 20.0}
            )
    file.write_text("\n".join(map(json.dumps, lines)))
    return lines


def test_keys_and_memory_that_the_contract_keeps_are_no_leak(tmp_path: Path) -> None:
    result = report.judge(recorded(tmp_path / "samples.jsonl"))
    assert result["grows"] == [] and result["minutes"] == pytest.approx(60, abs=1)
    assert result["trends"]["keys_unexplained"]["level"] == pytest.approx(600)
    assert result["trends"]["used_unexplained_mib"]["level"] == pytest.approx(5, abs=0.1)
    assert result["cpu_ms_per_image"] == pytest.approx(10)


def test_a_leak_fails_the_command_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run whose last line was cut off."""
    file = tmp_path / "samples.jsonl"
    recorded(file, leaks_fds=True)
    file.write_text(file.read_text() + '\n{"kind": "sample", "at')
    with pytest.raises(SystemExit) as exited:
        command.main(["--report", str(file)])
    assert exited.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["grows"] == ["gateway_fds"]
    assert "descriptors" in (tmp_path / "soak.svg").read_text()


def test_a_run_that_ended_early_fails_although_nothing_grows(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    recorded(file)
    with file.open("a") as end:
        end.write("\n")
        Recorder(end).write("ended_early", {"reason": "the worker has exited"})
    assert report.judge(read_lines(file))["ended_early"] == "the worker has exited"
    with pytest.raises(SystemExit) as exited:
        command.main(["--report", str(file)])
    assert exited.value.code == 1


@pytest.mark.slow
def test_a_short_soak_samples_every_process_and_every_visitor_is_served(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command.main(["--minutes", "0.6", "--every", "1", "--workers", "1", "--step-ms", "10", "--out", str(tmp_path)])
    lines = read_lines(tmp_path / "samples.jsonl")
    samples = [line for line in lines if line["kind"] == "sample"]
    assert len(samples) > 20 and {"gateway_rss_mib", "worker1_fds", "valkey_threads", "keys"} < set(samples[0])
    [did] = [line for line in lines if line["kind"] == "visitors"]
    assert {"followed", "abandoned", "canceled", "streamed", "webhook", "lists", "refused"} < set(did)
    assert not [name for name in did if ": " in name], did
