"""R-precision of single things: 1 for perfect images, few hits for others; the prompted style competes first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.data.atlas.assemble import assemble
from model.evaluation import evaluate
from model.evaluation.breadth.evaluate_breadth import BreadthBenchmark, candidates, choose, prompt_of, render_features
from tests.model.image_set import NOUNS, THINGS_USED, discs, pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    out = tmp_path_factory.mktemp("atlas")
    assemble(core, pictures()).save(out)
    return out


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> BreadthBenchmark:
    return BreadthBenchmark.load(folder, things=12)


def test_perfect_images_are_correct_and_those_of_other_prompts_are_not(benchmark: BreadthBenchmark) -> None:
    asked = benchmark.trained
    own = render_features([benchmark.entries[i] for i in asked], benchmark.atlas)
    assert len(asked) == 12 and benchmark.hits(own, asked).all()
    assert benchmark.hits(own.roll(1, 0), asked).mean() < 0.2


def test_prompts_are_of_trained_pairs_or_of_held_out_ones(benchmark: BreadthBenchmark) -> None:
    """Portraits, and things that one style alone draws, are not asked for."""
    trained = [benchmark.entries[i] for i in benchmark.trained]
    heldout = [benchmark.entries[i] for i in benchmark.heldout]
    assert all(e.split == "train" and e.noun in NOUNS for e in trained) and len({e.noun for e in trained}) == 12
    assert all(e.split == "heldout" for e in heldout)
    assert len({prompt_of(e) for e in benchmark.entries}) == len(benchmark.entries)


def test_things_of_scenes_are_not_asked_for(benchmark: BreadthBenchmark) -> None:
    """The breadth leaves them to the scenes, which draw them smaller: they counted as failures of the breadth."""
    asked = {benchmark.entries[i].noun for i in choose(benchmark.entries, 1000)[0]}
    left_out = min(asked)
    trained, heldout = choose(benchmark.entries, 1000, {left_out})
    assert {benchmark.entries[i].noun for i in trained} == asked - {left_out}
    assert all(benchmark.entries[i].noun != left_out for i in heldout)


def test_candidates_of_the_prompted_style_come_first(
    benchmark: BreadthBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, own = benchmark.entries, benchmark.trained[0]
    in_style = len({e.noun for e in entries if e.style == entries[own].style})
    monkeypatch.setattr("model.evaluation.breadth.evaluate_breadth.CANDIDATES", in_style)
    found = candidates(entries, own)
    assert found[0] == own and len({entries[i].noun for i in found}) == len(found) == in_style
    assert {entries[i].style for i in found} == {entries[own].style}


@pytest.mark.slow
def test_the_command_line_scores_a_checkpoint(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """atlas-128 knows none of these gadgets: each score is only present and in its range. Data without its styles
    ended in a ValueError of torch's."""
    options = [
        "--suite", "breadth", "--checkpoint", "atlas-128", "--images", "8", "--rows", "8", "--num-inference-steps", "2",
        "--diffusion-steps", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="no single things that two of the styles twemoji, noto draw"):
        evaluate.main([*options, "--data", str(folder)])
    core = discs(THINGS_USED)
    core.about["sha256"] = "0"
    drawn = [replace(picture, style="twemoji") if picture.style == "3d" else picture for picture in pictures()]
    assemble(core, drawn).save(tmp_path / "atlas")
    evaluate.main([*options, "--data", str(tmp_path / "atlas")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["breadth_trained_images"] == 8 and 0 <= report["breadth_trained"] <= 0.5
    assert 0 <= report["breadth_ceiling"] <= 1 and report["seam_ratio"] > 0
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
