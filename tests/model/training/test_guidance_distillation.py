"""Guidance in the weights: the copy learns it, guidance acts on top of it, and the command says what is missing."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import ConfigError
from model.inference.generate import generate
from model.inference.requests import Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from model.training.guidance_distillation import __main__ as command
from model.training.guidance_distillation import distill
from model.training.guidance_distillation.distill import check, losses, missing, velocities
from model.training.loop import train
from model.training.recipe import Recipe
from model.training.run import Run, prepare
from model.training.train import run_recipe
from tests.model.conftest import context
from tests.model.image_set import squares

SCALE = 2.0
FLOW = replace(PRESETS["tiny"], prediction="flow", clamp=0.0, width=32, head_width=64)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on squares, from a checkpoint of random weights."""
    monkeypatch.setitem(PRESETS, "tiny-flow", FLOW)
    squares().save(tmp_path / "data")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "random", Fluid(FLOW), new_tokenizer(FLOW), {"name": "random"})
    return write(tmp_path)


def write(folder: Path, **changes: object) -> Path:
    """The file of a recipe at test size."""
    small = {
        "preset": "tiny-flow", "data": str(folder / "data"), "tokenizer": str(folder / "random"), "text_encoder": "",
        "start_from": str(folder / "random"), "out": str(folder / "out"), "minutes": 0.0, "steps": 100, "batch": 8,
        "learning_rate": 3e-3, "warmup": 5, "anneal_from": 0.5, "ema": 0.9, "save_every": 50, "compile": False,
        "optimizer": "adamw", "text_drop": 0.3, "noise_draws": 2, "anneal_minutes": 0.0,
    }  # fmt: skip
    recipe = Recipe.load(Path("model/recipes/emoji-64.toml"), **{**small, **changes})
    values = {key: value for key, value in asdict(recipe).items() if value is not None}
    file = folder / "recipe.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return file


def trained(file: Path) -> Path:
    """A checkpoint that knows its prompts from none."""
    run, tokenizer = prepare(Recipe.load(write(file.parent, out=str(file.parent / "first"))))
    for _ in train(run, progress=False):
        pass
    run.learner.ema.copy_to(run.model)
    folder = file.parent / "teacher"
    save_checkpoint(folder, run.model, tokenizer, {"name": "teacher"}, torch.float32)
    return folder


def distilled(file: Path, teacher: Path) -> tuple[Run, Fluid, float]:
    """A finished distillation, its teacher, and what was missing before its first step."""
    recipe = Recipe.load(write(file.parent, start_from=str(teacher)))
    check(recipe, SCALE)
    run, _ = prepare(recipe)
    frozen = copy.deepcopy(run.model).requires_grad_(False).eval()
    before = missing(run, frozen, SCALE)
    for _ in train(run, progress=False, losses=partial(losses, teacher=frozen, scale=SCALE)):
        pass
    return run, frozen, before


def test_the_copy_draws_with_one_pass_what_guidance_draws_with_two(recipe: Path) -> None:
    run, teacher, before = distilled(recipe, trained(recipe))
    assert before == pytest.approx(1, abs=0.02), "at first nothing has been learned"
    assert missing(run, teacher, SCALE) < 0.3
    student = Fluid(FLOW).eval()
    run.learner.ema.copy_to(student)
    encoder, seeds = HashEncoder(FLOW.text), torch.arange(4)
    prompts = ["red square left", "blue square right", "green square left", "black square right"]

    def drawn(model: Fluid, scale: float) -> torch.Tensor:
        sampling = Sampling(num_inference_steps=4, diffusion_steps=12, guidance_scale=scale)
        return generate(model, context(model, encoder, *prompts), context(model, encoder, ""), seeds, sampling)

    for own, of_teacher in ((1.0, SCALE), (1.5, 1.5 * SCALE), (0.0, 0.0)):
        wanted, plain = drawn(teacher, of_teacher), drawn(teacher, 1.0)
        error, guidance = (drawn(student, own) - wanted).norm(), (plain - wanted).norm()
        assert error < 0.6 * guidance, f"a scale of {own} is one of {of_teacher} of the first model"


def test_images_without_a_prompt_keep_their_velocity(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of zeros, as new ones are, no velocity could have differed."""
    monkeypatch.setattr(distill, "autocast", lambda _: nullcontext())
    run, _ = prepare(Recipe.load(recipe))
    torch.manual_seed(0)
    for name, parameter in run.model.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name.startswith("backbone") else 0.1)
    teacher = copy.deepcopy(run.model).eval()
    found, target, plain = velocities(run, run.model, teacher, 5.0, step=0, drop=1.0)
    torch.testing.assert_close(target, plain, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0.0)
    _, target, plain = velocities(run, run.model, teacher, 5.0, step=0, drop=0.0)
    assert (target - plain).abs().mean() > 0.05


def test_the_command_resumes_and_says_what_was_learned(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--recipe", str(write(recipe.parent, steps=10, save_every=5)), "--scale", "3"])
    first = load_checkpoint(recipe.parent / "out" / "checkpoint")
    begun = load_checkpoint(recipe.parent / "random").sha256
    assert first.about["sampling"]["defaults"]["guidance_scale"] == 1, "what was learned, and not three times as much"
    assert first.about["training"]["guidance"]["scale"] == 3 and "of what guidance adds" in capsys.readouterr().out
    command.main(["--recipe", str(write(recipe.parent, steps=15, save_every=5)), "--scale", "3"])
    said = capsys.readouterr().out
    assert "resuming" in said and "used up" not in said
    command.main(["--recipe", str(recipe.parent / "recipe.toml"), "--scale", "3"])
    assert "resuming" in (said := capsys.readouterr().out) and "used up: give the recipe more" in said
    with pytest.raises(SystemExit, match="learns a scale of 3: resume it with --scale 3"):
        command.main(["--recipe", str(write(recipe.parent, steps=20, save_every=5)), "--scale", "2"])
    teacher = recipe.parent / "random"
    tokenizer = load_checkpoint(teacher).tokenizer
    torch.manual_seed(1)
    save_checkpoint(teacher, Fluid(FLOW), tokenizer, {"name": "random"})
    with pytest.raises(SystemExit, match=f"learns from the weights {begun}, start_from holds"):
        command.main(["--recipe", str(write(recipe.parent, steps=20, save_every=5)), "--scale", "3"])
    assert [entry[0] for entry in json.loads((recipe.parent / "out/history.json").read_text())] == [5, 10, 15]


def test_a_training_is_not_resumed_as_a_distillation(recipe: Path) -> None:
    """Its checkpoint would have claimed to hold guidance."""
    run, _ = prepare(Recipe.load(write(recipe.parent, steps=5, save_every=5)))
    for _ in train(run, progress=False):
        pass
    with pytest.raises(SystemExit, match="holds a training without guidance"):
        command.main(["--recipe", str(write(recipe.parent, steps=10, save_every=5))])


def test_a_distillation_is_not_resumed_as_a_training(recipe: Path) -> None:
    """Guidance was trained out again, and a checkpoint of a finished one no longer said that it holds guidance."""
    command.main(["--recipe", str(write(recipe.parent, steps=2, save_every=1)), "--scale", "3"])
    before = load_checkpoint(recipe.parent / "out" / "checkpoint")
    with pytest.raises(ConfigError, match=r"resume it by .*guidance_distillation --scale 3` with this recipe"):
        run_recipe(Recipe.load(recipe), until=float("inf"))
    assert load_checkpoint(recipe.parent / "out" / "checkpoint").about == before.about


def test_weights_that_teach_are_not_written_over(recipe: Path) -> None:
    """The copy took the place of the weights from which a training goes on."""
    own = recipe.parent / "out" / "checkpoint"
    (recipe.parent / "random").rename(own.parent.with_name("moved"))
    own.parent.mkdir()
    own.parent.with_name("moved").rename(own)
    changed = {"start_from": str(own), "tokenizer": str(own)}
    with pytest.raises(SystemExit, match="is one of those that are read"):
        command.main(["--recipe", str(write(recipe.parent, **changed))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": ""}, "start_from is empty: name the checkpoint"),
        ({"preset": "tiny"}, r"preset 'tiny' has .*prediction 'v'.*choose such a preset"),
    ],
)
def test_what_cannot_learn_guidance_is_refused(recipe: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(Recipe.load(write(recipe.parent, **changes)), SCALE)


def test_what_teaches_nothing_is_refused(recipe: Path) -> None:
    """A scale of 1 once wrote Infinity, which is no JSON, and weights of other sizes taught random numbers."""
    with pytest.raises(ConfigError, match="a scale of 1 is no guidance"):
        check(Recipe.load(recipe), 1.0)
    small = replace(FLOW, depth=1)
    save_checkpoint(recipe.parent / "small", Fluid(small), new_tokenizer(small), {"name": "small"})
    with pytest.raises(ConfigError, match="small has other sizes than preset 'tiny-flow'"):
        check(Recipe.load(write(recipe.parent, start_from=str(recipe.parent / "small"))), SCALE)
