"""The comparison with other servers counts what it claims, and each server generates the right image.

Tests of the servers need the peers' environment (`make bench-peers` makes it) and are skipped without it; so are those
of the load without wrk.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.peers import __main__ as command
from benchmarks.peers import crash, pages, parts, processes, report, sides, wrk
from benchmarks.peers.crash import Request
from benchmarks.peers.parts import PARTS, QUICK, Setup
from benchmarks.peers.servers.work import Images
from server.gateway.requests.resolve import resolve
from server.gateway.schemas.images import ImageRequest
from server.images.codec import read_metadata
from server.model_info import ModelInfo
from server.worker.engine.fake import FAKE_ENGINE, FakeEngine, fake_image
from server.worker.engine.protocol import RowRequest
from tests.server.harness import until

PYTHON = command.VENV / "bin" / "python"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason=wrk.INSTALL)
needs_peers = pytest.mark.skipif(
    not (command.VENV / ".installed").exists(), reason=f"no peers in {command.VENV}: `make bench-peers`"
)
BODY = {"prompt": "a cat", "seed": 5, "num_inference_steps": 8}


def expected(body: dict[str, object]) -> bytes:
    """Return the pixels of the image, by the gateway's own way from a request to a row."""
    info = ModelInfo.from_mapping(FakeEngine(1, 0.0).info())
    job, _ = resolve(ImageRequest.model_validate(body), {info.id: info}, info.id)
    return fake_image(RowRequest.of(job, 0))


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def test_a_batch_of_the_peers_has_the_images_of_its_requests_whatever_their_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLUID_ENGINE", FAKE_ENGINE)
    monkeypatch.setenv("FLUID_FAKE_STEP_MS", "0")
    images = Images()
    bodies = [BODY | {"seed": seed, "num_inference_steps": steps} for seed, steps in ((1, 64), (2, 8), (3, 20))]
    for body, png in zip(bodies, images.generate(bodies), strict=True):
        recipe = read_metadata(png)
        assert pixels(png) == expected(body)
        assert recipe is not None and recipe["num_inference_steps"] == body["num_inference_steps"]


def test_requests_in_flight_at_the_kill_are_lost_unless_their_image_comes() -> None:
    """Killed at 10: two were in flight, of which one hangs; of those sent later the second is served at 13."""
    requests = [
        Request(1, 9.5, "image"), Request(9, 12, "image"), Request(9, 29, "hung"), Request(10.5, 11, "failed"),
        Request(11, 13, "image"), Request(12, 15, "image"),
    ]  # fmt: skip
    assert crash.count(requests, 10) == {
        "in_flight": 2, "lost": 1, "failed_after": 1, "hung": 1, "serves_again_s": 3, "longest_wait_s": 3,
    }  # fmt: skip


def test_a_server_that_never_serves_again_has_no_time() -> None:
    figures = crash.count([Request(9, 29, "hung"), Request(10.5, 11, "failed")], 10)
    assert figures["serves_again_s"] is None and figures["longest_wait_s"] is None


def test_processes_that_left_the_tree_are_found_by_their_mark(tmp_path: Path) -> None:
    """Ray's processes outlive their parents; without the mark they would cost nothing and stay."""
    env = os.environ | {processes.MARK: "test-1"}
    subprocess.run(["sh", "-c", f"setsid sleep 60 & echo $! > {tmp_path}/pid"], env=env, check=True)
    pid = int((tmp_path / "pid").read_text())
    try:
        until(lambda: processes.family([], "test-1") == {pid}, what="the mark")  # /proc shows none during an exec
        assert processes.memory_mib([pid]) > 0 and pid in processes.used_cpu_s([pid])
    finally:
        processes.kill_all(lambda: {pid})
    assert processes.family([], "test-1") == set()


def test_missing_tools_are_named_with_their_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as exited:
        command.main([])
    assert exited.value.code == 2 and "apt-get install wrk" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(SystemExit) as exited:
        command.main(["--venv", str(tmp_path)])
    assert exited.value.code == 2 and "make bench-peers" in capsys.readouterr().err


def test_a_side_that_fails_is_reported_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One peer that does not start used to end a run of twenty minutes."""

    @contextmanager
    def running(name: str, engine: dict[str, str], python: Path) -> Iterator[SimpleNamespace]:
        if name == "ray":
            raise RuntimeError("Ray Serve does not serve")
        yield SimpleNamespace(port=0)

    monkeypatch.setattr(parts, "running", running)
    monkeypatch.setattr(parts, "settle", lambda side: None)
    monkeypatch.setattr(wrk, "closed", lambda *arguments: None)
    setup = Setup(("ray", "ours"), PYTHON, QUICK)
    table = setup.repeat("a part", {}, lambda side, figures: figures.update({"figure": 2.0}), rounds=2)
    assert table == {"ours": {"figure": 2.0}}
    assert "a part: Ray Serve does not serve" in capsys.readouterr().err and len(setup.problems) == 2


def test_what_a_side_has_shown_before_it_fails_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures of a peer were lost when one request of its last measurement hung."""

    @contextmanager
    def running(name: str, engine: dict[str, str], python: Path) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(port=0)

    def measure(side: sides.Side, figures: parts.Figures) -> None:
        figures["first"] = 3.0
        raise RuntimeError("it hangs")

    monkeypatch.setattr(parts, "running", running)
    monkeypatch.setattr(parts, "settle", lambda side: None)
    monkeypatch.setattr(wrk, "closed", lambda *arguments: None)
    setup = Setup(("litserve",), PYTHON, QUICK)
    assert setup.repeat("a part", {}, measure, rounds=1) == {"litserve": {"first": 3.0}}
    assert setup.problems == ["a part: it hangs"]


def test_tables_show_every_side_and_its_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"equal_1": 20.0, "equal_16": 200.0, "mixed_1": 10.0, "mixed_16": None, "failed_equal_16": 3.0}
    report.print_table("throughput", {"by_hand": row, "ours": row})
    printed = capsys.readouterr().out
    assert "FastAPI by hand" in printed and "Fluid Serve: 3 requests failed equal 16" in printed
    drawn = report.plot_throughput({"by_hand": row, "ours": row}, tmp_path / "plot.svg").read_text()
    assert "Fluid Serve" in drawn and len(drawn) < 100_000


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize("name", sides.NAMES)
def test_each_server_generates_the_right_image(name: str) -> None:
    with sides.running(name, sides.fake(0.0), PYTHON) as side:
        png = sides.fetch(side.port, BODY)
        recipe = read_metadata(png)
        assert pixels(png) == expected(BODY)
        assert recipe is not None and (recipe["seed"], recipe["num_inference_steps"]) == (5, 8)
        assert side.engine_pid() in side.pids()
    assert processes.family([], side.mark) == set()


@pytest.mark.slow
@needs_peers
@needs_wrk
@pytest.mark.parametrize("part", sorted(set(PARTS) - {"model"}))
def test_the_parts_run_on_the_smallest_scale(part: str) -> None:
    plan = replace(QUICK, callers=(1, 16), paced=wrk.Length(1, 10, 5), crash_s=2.0)
    table = PARTS[part](Setup(("by_hand", "ours"), PYTHON, plan))
    report.print_table(part, table)
    assert list(table) == ["by_hand", "ours"]
    if part == "killed":
        assert table["ours"]["lost"] == table["ours"]["hung"] == 0 and table["by_hand"]["lost"]
    else:
        known = [value for row in table.values() for name, value in row.items() if not name.endswith("p99_ms")]
        assert None not in known


@pytest.mark.slow
@needs_peers
@needs_wrk
def test_the_last_line_is_json() -> None:
    arguments = ["--quick", "--only", "added", "--sides", "by_hand"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *arguments], capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout.splitlines()[-1])) == {"machine", "peers", "added", "problems"}


def saved_run() -> dict[str, object]:
    """A run of three sides with few figures."""
    row = {"p50_ms_equal_1": 40.0, "equal_16": 100.0, "equal_64": 150.0, "mixed_64": 90.0, "cpu_ms_per_image": 3.25}
    sides_ = ("by_hand", "litserve", "ours")
    return {
        "machine": {"date": "2026-11-28", "cores": 2, "cpu": "AMD EPYC"}, "peers": {"litserve": "0.2.19"},
        "throughput": {side: {name: value * (i + 1) for name, value in row.items()} for i, side in enumerate(sides_)},
        "latency": {side: {"capacity": 150.0, "at_50_p50_ms": 45.5, "at_50_p99_ms": None} for side in sides_},
        "killed": {side: {"lost": 0 if side == "ours" else 32, "hung": 0, "serves_again_s": 1.25} for side in sides_},
    }  # fmt: skip


def test_a_saved_run_fills_both_pages_and_may_do_so_again(tmp_path: Path) -> None:
    """The block between the markers and the README's rows are replaced, nothing else; the second time, by the same."""
    (tmp_path / "docs").mkdir()
    saved = tmp_path / "peers-2026-11-28.json"
    saved.write_text(json.dumps(saved_run()))
    for name in ("README.md", "docs/benchmarks.md"):
        shutil.copy(sides.ROOT / name, tmp_path / name)
    texts = []
    for _ in range(2):
        docs, readme, plot = pages.write(saved, tmp_path, tmp_path / "peers.svg")
        texts.append((docs.read_text(), readme.read_text()))
    assert texts[0] == texts[1] and plot.stat().st_size < 40_000
    page, readme_page = texts[0]
    assert "| Fluid Serve | 120 | **300** | **450** | **270** | 9.8 |" in page
    text = " ".join(page.split())
    assert "first at: 16 (1.50x); 64 (1.50x); 64, mixed (1.50x)" in text and "p50 ms (0.33x)" in text
    assert "| **0** |" in page and "## Under failure" in page and max(map(len, page.splitlines())) < 400
    assert (
        "| images/s, 64 callers with equal settings, one fake model, 2 cores | 450 | | 300, -, - | 150 |" in readme_page
    )
    assert "| images lost of 32 when the worker is killed | 0 | | 32, -, - | 32 |" in readme_page
    assert readme_page.count("| images/s, 64 callers with equal") == 1 and "## The life of a request" in readme_page


def test_a_page_without_a_place_for_the_figures_is_reported() -> None:
    with pytest.raises(ValueError, match="<!-- peers -->"):
        pages.fill_benchmarks("no markers", saved_run(), "x.json")
    with pytest.raises(ValueError, match="README"):
        pages.fill_readme("no rows", saved_run())
