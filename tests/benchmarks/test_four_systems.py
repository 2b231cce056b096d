"""The comparison of the four systems: stages that resume, reports collected, a power law."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.four_systems import runs
from benchmarks.four_systems.__main__ import main
from benchmarks.four_systems.runs import RECIPE, SIZES, SYSTEMS, StageError, run_stages, stages
from benchmarks.four_systems.table import collect, power_law
from model.networks.factory import build_model
from model.networks.transformer import count_parameters
from model.presets import PRESETS
from model.training.recipe import Recipe


def _trained(folder: Path, steps: int, loss: float, parameters: int) -> None:
    """The files of a finished run."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "config.json").write_text(
        json.dumps({"about": {"training": {"steps": steps, "minutes": 20}}})
    )
    report = {"loss": loss, "loss_seen": loss, "loss_unseen": 1.5 * loss, "parameters": parameters}
    (folder / "loss.json").write_text(json.dumps(report))


def test_the_systems_have_the_same_size_and_are_what_they_are_called() -> None:
    sizes = {}
    for name in SYSTEMS:
        config = PRESETS[f"compare-{name}"]
        assert config.system == name and config.tokens == 64
        sizes[name] = count_parameters(build_model(config))
    assert min(sizes.values()) > 2e6 and max(sizes.values()) < 4e6
    assert max(sizes.values()) / min(sizes.values()) < 1.02
    scaled = [count_parameters(build_model(PRESETS[f"compare-{name}"])) for name in SIZES]
    assert scaled == sorted(scaled) and scaled[2] / scaled[0] > 5


def test_the_recipe_is_valid_for_every_run() -> None:
    for name in (*SYSTEMS, *SIZES):
        recipe = Recipe.load(Path(RECIPE), preset=f"compare-{name}")
        assert recipe.scenes is not None and recipe.clock == "cpu"


def test_a_stage_that_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed anywhere, the next run begins with the stage that was cut."""
    called: list[str] = []

    class Ended:
        returncode = 0

    def leave(command: list[str], check: bool) -> Ended:
        stage = next(s for s in stages(tmp_path / "compare", 20, 40, 25) if list(s.arguments) == command[2:])
        called.append(stage.name)
        if len(called) == 3:
            raise KeyboardInterrupt
        stage.leaves.parent.mkdir(parents=True, exist_ok=True)
        stage.leaves.write_text(json.dumps({"about": {"training": {"steps": 77, "minutes": 20}}}))
        return Ended()

    monkeypatch.setattr(runs.subprocess, "run", leave)
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path / "compare", 20, 40, 25)
    run_stages(tmp_path / "compare", 20, 40, 25)
    assert called[:2] == ["continuous tokenizer", "random-continuous: train"] and called[2] == called[3]
    assert len(called) == len(set(called)) + 1 == 20
    large = next(s for s in stages(tmp_path / "compare", 20, 40, 25) if s.name == "random-continuous-large: train")
    assert large.arguments[-4:] == ("--minutes", "0", "--steps", "77")  # as many as the middle size


def test_a_stage_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "sys", type("Python", (), {"executable": "false"}))
    with pytest.raises(StageError, match="continuous tokenizer: exit status 1"):
        run_stages(tmp_path, 20, 40, 25)


def test_the_power_law_of_points_on_one_is_found() -> None:
    sizes = [1e6, 3e6, 9e6]
    fit = power_law(sizes, [7 * size**-0.3 for size in sizes])
    assert fit == {"exponent": -0.3, "factor": 7.0, "r2": 1.0, "points": 3}


def test_the_table_shows_what_is_there_beside_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trained(tmp_path / "random-continuous", 900, 0.5, 2_600_000)
    main(["table", "--runs", str(tmp_path), "--no-save"])
    out = capsys.readouterr().out
    assert "| random-continuous | 2.60 | 900 | 0.5000 / 0.7500 | - / - | - | - | - | 8.42, 0.481 | 6.59, 0.667 |" in out
    assert "scaling" not in json.loads(out.splitlines()[-1])
    _trained(tmp_path / "random-continuous-small", 900, 0.6, 1_100_000)
    _trained(tmp_path / "random-continuous-large", 900, 0.45, 6_600_000)
    assert -0.3 < collect(tmp_path)["scaling"]["exponent"] < -0.1
    apart = collect(tmp_path / "longer", curve=tmp_path)
    assert apart["runs"] == {} and apart["scaling"] == collect(tmp_path)["scaling"]
    main(["table", "--runs", str(tmp_path), "--no-save", "--figure", str(tmp_path / "curve.svg")])
    drawing = ElementTree.parse(tmp_path / "curve.svg").getroot()
    circles = [
        (float(c.get("cx", 0)), float(c.get("cy", 0))) for c in drawing.iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert [x for x, _ in circles] == sorted(x for x, _ in circles) and len(circles) == 3
    assert [y for _, y in circles] == sorted(y for _, y in circles)  # down the page: less loss


def test_a_run_whose_loss_is_not_measured_yet_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kill between training and its loss made a KeyError of the table."""
    for name in ("random-continuous", "random-continuous-small", "random-continuous-large"):
        _trained(tmp_path / name, 900, 0.5, 2_600_000)
        (tmp_path / name / "loss.json").unlink()
    main(["table", "--runs", str(tmp_path), "--no-save"])
    assert "| random-continuous | - | 900 | - / - |" in capsys.readouterr().out


def test_a_curve_with_a_size_missing_is_not_drawn(tmp_path: Path) -> None:
    _trained(tmp_path / "random-continuous", 900, 0.5, 2_600_000)
    with pytest.raises(SystemExit, match="needs the losses of all sizes"):
        main(["table", "--runs", str(tmp_path), "--no-save", "--figure", str(tmp_path / "curve.svg")])
