"""The objective of reinforcement learning, and the whole command at a small size."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.config import ConfigError
from model.data.scenes.things import STYLES, THINGS
from model.evaluation.detector import Detector, save_detector
from model.inference.requests import Sampling
from model.presets import PRESETS
from model.reinforcement import __main__ as command
from model.reinforcement.rollouts import Drawing, Rollouts, rollouts
from model.reinforcement.tune import Curve, check, objective
from model.training.recipe import Recipe
from model.training.run import Run, prepare
from tests.model.image_set import discs
from tests.model.training.test_portable_run import SHIPPED, recipe_text

THINGS_USED = tuple(THINGS)[:3]
FEW = Drawing(Sampling(num_inference_steps=2, diffusion_steps=2), prompts=2, group=2)


def small_recipe(folder: Path, **changes: object) -> Path:
    """A recipe from the shipped weights on scenes of three things."""
    if not (folder / "sprites").exists():
        discs(tuple(THINGS)[:6]).save(folder / "sprites")
    values = {
        "tokenizer": SHIPPED, "start_from": SHIPPED, "out": folder / "out", "batch": 2, "minutes": 0, "steps": 4,
        "save_every": 2, "noise_draws": 1, "layout_weight": 0.0, "captions": 8, "anneal_minutes": 0, "warmup": 1,
    }  # fmt: skip
    file = folder / "recipe.toml"
    file.write_text(recipe_text(folder / "sprites", **{**values, **changes}))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return prepare(Recipe.load(small_recipe(tmp_path_factory.mktemp("tune"))))[0]


@pytest.fixture(scope="module")
def judge() -> Detector:
    torch.manual_seed(0)
    return Detector(THINGS_USED, STYLES).eval()


def gradient(run: Run, found: Rollouts, strength: float) -> torch.Tensor:
    """The gradient of the objective, with respect to all weights."""
    run.model.zero_grad()
    objective(run, copy.deepcopy(run.model).requires_grad_(False), found, strength).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


@pytest.mark.slow
def test_an_advantage_pulls_as_far_as_its_opposite_pushes(run: Run, judge: Detector) -> None:
    """With an advantage of 0 only the data teach; what 1 adds to that, -1 takes away, and it grows with strength."""
    found = rollouts(run.model, check(run), judge, FEW, seed=0, index=0)
    of = {a: gradient(run, replace(found, advantage=torch.full((4,), a)), 1.0) for a in (-1.0, 0.0, 1.0)}
    pull = of[1.0] - of[0.0]
    assert pull.norm() > 0.1 * of[0.0].norm(), "the images teach nothing: this test shows nothing"
    tolerance = {"atol": 0.02 * float(pull.abs().max()), "rtol": 0.0}  # products are in bfloat16 where that is native
    torch.testing.assert_close(of[0.0] - of[-1.0], pull, **tolerance)
    twice = gradient(run, replace(found, advantage=torch.full((4,), 1.0)), 2.0) - of[0.0]
    torch.testing.assert_close(twice, 2 * pull, atol=2 * tolerance["atol"], rtol=0.0)


@pytest.mark.slow
def test_rollouts_are_a_function_of_weights_seed_and_index(run: Run, judge: Detector) -> None:
    first, again, next_ = (rollouts(run.model, check(run), judge, FEW, seed=0, index=index) for index in (0, 0, 1))
    assert torch.equal(first.tokens, again.tokens) and first.rows.tolist() == again.rows.tolist()
    assert not torch.equal(first.tokens, next_.tokens) and len(set(first.rows.tolist())) == 2
    assert len({tokens.numpy().tobytes() for tokens in first.tokens}) == 4, (
        "images of one prompt have seeds of their own"
    )
    fewer = rollouts(run.model, check(run), judge, replace(FEW, kept=3), seed=0, index=0)
    assert len(fewer.rows) == len(fewer.tokens) == 3 and fewer.reward == first.reward
    assert torch.equal(fewer.advantage, first.advantage[:3]) and first.advantage.abs().diff().max() <= 0


@pytest.mark.slow
def test_what_cannot_be_tuned_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="layout_weight must be 0"):
        check(replace(run, layout_head=torch.nn.Linear(1, 1)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"system 'random-discrete'.*choose such a preset"):
        check(replace(run, config=PRESETS["compare-random-discrete"]))
    with pytest.raises(ConfigError, match=r"no table \[scenes\]"):
        check(replace(run, feed=None))  # type: ignore[arg-type]


def test_a_curve_drops_the_iterations_that_are_done_again(tmp_path: Path) -> None:
    file = tmp_path / "rewards.json"
    file.write_text(json.dumps([[2, 0.5, 0.4], [4, 0.6, 0.5], [6, 0.7, 0.6]]))
    curve = Curve(file)
    curve.resume(4)
    assert curve.entries == [[2, 0.5, 0.4], [4, 0.6, 0.5]] and curve.recent(1) == (0.6, 0.5)


def test_a_model_must_be_there_to_be_tuned(tmp_path: Path, judge: Detector) -> None:
    save_detector(judge, tmp_path / "judge", {})
    flags = ["--judge", str(tmp_path / "judge"), "--recipe"]
    with pytest.raises(SystemExit, match="start_from is empty"):
        command.main([*flags, str(small_recipe(tmp_path, start_from=""))])
    with pytest.raises(SystemExit, match="no detector in"):
        command.main(["--judge", str(tmp_path), "--recipe", str(tmp_path / "recipe.toml")])


@pytest.mark.slow
def test_a_tuning_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, judge: Detector) -> None:
    save_detector(judge, tmp_path / "judge", {})
    presets = {"num_inference_steps": 2, "diffusion_steps": 2}
    (tmp_path / "sampling.json").write_text(
        json.dumps({"presets": {q: presets for q in ("low", "medium", "high")}, "defaults": {"quality": "low"}})
    )
    flags = ["--judge", str(tmp_path / "judge"), "--sampling", str(tmp_path / "sampling.json")]
    flags += ["--prompts", "1", "--group", "2", "--updates", "2", "--recipe"]
    for out, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        command.main([*flags, str(small_recipe(tmp_path, out=tmp_path / out, steps=steps, anneal_from=1.0))])
    whole, parts = (load_checkpoint(tmp_path / out / "checkpoint") for out in ("whole", "parts"))
    assert whole.sha256 == parts.sha256
    curves = [json.loads((tmp_path / out / "rewards.json").read_text()) for out in ("whole", "parts")]
    assert curves[0] == curves[1] and [entry[0] for entry in curves[0]] == [2, 4]
    assert whole.about["training"]["reinforcement"]["images"] == 4
    assert (tmp_path / "whole/rewards.svg").exists()
