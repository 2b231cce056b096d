"""Budgets and values of a recipe: what cannot be is refused by key, and every run that ends anneals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.config import ConfigError
from model.networks.factory import new_tokenizer
from model.presets import PRESETS
from model.training import loop, train, train_tokenizer
from model.training.command import machine
from model.training.recipe import Recipe
from model.training.run import Run, prepare
from model.training.trainer import Clock, learning_rate
from tests.model.training.test_damaged_files import recipe as written_recipe

ATLAS = Path("model/recipes/atlas-128.toml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("minutes", "-5", "minutes = -5 must be 0 or more"),
        ("minutes", "nan", "minutes = nan must be finite"),
        ("anneal_minutes", "-5", "anneal_minutes = -5 must be 0 or more"),
        ("learning_rate", "inf", "learning_rate = inf must be finite"),
        ("weight_decay", "-0.1", "weight_decay = -0.1 must be 0 or more"),
        ("seed", "-1", "seed = -1 must be 0 or more"),
        ("layout_weight", "-1", "layout_weight = -1 must be 0 or more"),
        ("relation_steps", "-1", "relation_steps = -1 must be 0 or more"),
        ("loaders", "-1", "loaders = -1 must be 0 or more"),
        ("things", "500", "things = 500 must be at most 95"),
        ("breadth_styles", "[1, 2]", r"breadth_styles = \[1, 2\] must be a list of texts"),
    ],
)
def test_values_that_cannot_be_name_key_and_limit(key: str, value: str, message: str, tmp_path: Path) -> None:
    """They were accepted: a budget of NaN never ended, and styles that are numbers failed after the captions."""
    lines = [f"{key} = {value}" if line.startswith(f"{key} ") else line for line in ATLAS.read_text().splitlines()]
    (tmp_path / "r.toml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=rf"r\.toml: {message}"):
        Recipe.load(tmp_path / "r.toml")


@pytest.mark.parametrize(("line", "kind"), [("scenes = 3", "int"), ("[[scenes]]", "list")])
def test_scenes_are_one_table(line: str, kind: str, tmp_path: Path) -> None:
    """A number or a list in its place was a TypeError."""
    head, _, table = ATLAS.read_text().partition("[scenes]")
    (tmp_path / "r.toml").write_text(f"{head}{line}\n{table if kind == 'list' else ''}")
    with pytest.raises(ConfigError, match=rf"scenes must be one table, \[scenes\], not a {kind}"):
        Recipe.load(tmp_path / "r.toml")


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "soon"])
def test_flags_of_time_are_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--stop-after-minutes nan` never stopped, and `--minutes nan` of a tokenizer trained for ever."""
    for main, flag in ((train.main, "--stop-after-minutes"), (train_tokenizer.main, "--minutes")):
        with pytest.raises(SystemExit) as ended:
            main([flag, value])
        assert ended.value.code == 2
        assert f"{flag}: '{value}' is not a finite number, 0 or more" in capsys.readouterr().err


def test_a_run_that_its_steps_end_anneals_by_steps() -> None:
    """With an annealing phase in minutes, a run that its steps ended kept the full rate to its last step."""

    def rate(clock: Clock) -> float:
        return learning_rate(1.0, clock, warmup=1, anneal_from=0.5)

    for minutes in (0.0, 100.0):
        clock = Clock(steps=100, minutes=minutes, anneal_minutes=10, step=50, seconds=60)
        assert rate(clock) == 1.0
        clock.step = 75
        assert rate(clock) == pytest.approx(0.51)
        clock.step = 100
        assert rate(clock) == pytest.approx(0.02)
        clock.step, clock.annealing = 75, 60.0  # the phase counts as soon as it is further
        clock.seconds += 600
        assert rate(clock) == pytest.approx(0.02)


def test_what_does_not_continue_a_run_is_refused(tmp_path: Path) -> None:
    """A phase that had begun ended at once with `--anneal-minutes 0`, and weights that began at random were published
    as "from the weights of" whatever --start-from named."""
    file = written_recipe(tmp_path, preset="tiny")
    save_file(new_tokenizer(PRESETS["tiny"]).state_dict(), tmp_path / "tokenizer.safetensors")
    given = Recipe.load(file, out=str(tmp_path / "out"), compile=False, anneal_minutes=3.0)
    run, _ = prepare(given)
    run.clock.anneal()
    run.save()
    with pytest.raises(ConfigError, match=r"anneal_minutes = 0, but the annealing phase of .*out has begun"):
        prepare(replace(given, anneal_minutes=0.0))[0].resume()
    again, _ = prepare(given)
    again.started_from = {"folder": "there", "name": "other", "sha256": "1" * 64, "training": {}}
    with pytest.raises(ConfigError, match=r"holds a run that began with random weights; resume it with an empty"):
        again.resume()
    run.started_from = again.started_from
    run.save()
    resumed, _ = prepare(given)
    assert resumed.resume() and resumed.started_from["name"] == "other", "the recipe names no start: the state does"
    again.started_from = again.started_from | {"sha256": "2" * 64}  # a run that trains on has written there meanwhile
    assert again.resume() and again.started_from["sha256"] == "1" * 64, "the same command resumes"


def test_without_a_compiler_training_goes_on_without_torch_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its error came as a traceback of the first step, when the tokenizer was trained and all captions were encoded."""

    def no_compiler(function: object) -> object:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nSet CXX")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert not machine.can_compile(torch.device("cpu"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "(InvalidCxxCompiler: No working C++ compiler found)" in said and "g++" in said
    given = Recipe.load(written_recipe(tmp_path), out=str(tmp_path / "out"))
    assert given.compile
    monkeypatch.setattr("model.training.run.open_feed", lambda recipe, *rest: pytest.fail(f"compile {recipe.compile}"))
    with pytest.raises(pytest.fail.Exception, match="compile False"):
        prepare(given)


def test_a_failed_allocation_is_one_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch too large for the GPU was a traceback of torch; other errors stay what they are."""

    def allocate(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(train, "run_recipe", allocate)
    with pytest.raises(SystemExit, match="out of memory: lower --batch or noise_draws; the same command"):
        train.main(["--recipe", str(ATLAS)])
    with pytest.raises(RuntimeError, match="shapes"), machine.within_memory("lower --batch"):
        raise RuntimeError("shapes differ")


def test_an_annealing_that_has_begun_survives_a_kill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the next multiple of save_every the phase was in memory alone: the run went on at the full rate."""
    file = written_recipe(tmp_path, preset="tiny")
    save_file(new_tokenizer(PRESETS["tiny"]).state_dict(), tmp_path / "tokenizer.safetensors")
    given = Recipe.load(file, out=str(tmp_path / "out"), compile=False, anneal_minutes=3.0, minutes=60.0, save_every=50)
    whole, steps = loop.train_step, 0

    def step(run: Run, losses: loop.Losses) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt
        return whole(run, losses)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        train.run_recipe(given, until=float("inf"), anneal_now=True)
    run, _ = prepare(given)
    assert run.resume() and run.clock.annealing is not None
