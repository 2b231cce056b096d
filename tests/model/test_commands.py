"""Ctrl-C and `make train`: what a user meets at the ends of a training."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data import build, build_atlas, build_scenes
from model.evaluation import evaluate, train_detector
from model.evaluation.cards import __main__ as cards
from model.training import portable_run, train, train_tokenizer
from model.training.few_steps import __main__ as few_steps
from model.training.guidance_distillation import __main__ as guidance
from model.training.latents import build as latents

ROOT = Path(__file__).parents[2]
RESUMES = (train, train_tokenizer, train_detector, few_steps, guidance)
STARTS_OVER = (build, build_scenes, build_atlas, evaluate, cards, portable_run, latents)


@pytest.mark.parametrize("command", [*RESUMES, *STARTS_OVER], ids=lambda command: command.__name__)
def test_an_interrupted_command_says_how_to_go_on(
    command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C was a traceback through torch, and nothing said that the same command resumes."""

    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    main: Callable[[list[str]], None] = command.main  # type: ignore[attr-defined]
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", interrupted)
    with pytest.raises(SystemExit) as ended:
        main([])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 130 and said.count("\n") == 0
    assert said.startswith("interrupted: the same command " + ("resumes" if command in RESUMES else "starts over"))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("recipe", "tokenizer"),
    [
        ("emoji-64", "--preset emoji-64 --data data/emoji-64 --out runs/emoji-64/tokenizer"),
        ("atlas-128", "--preset atlas-128 --data data/atlas --out runs/atlas-128/tokenizer --things 95"),
        ("compare", "--preset compare-random-continuous --data data/scenes --out runs/compare/tokenizer"),
        ("atlas-128-gpu", None),
    ],
)
def test_make_train_trains_the_tokenizer_that_the_recipe_names(recipe: str, tokenizer: str | None) -> None:
    """It trained one by a preset of the recipe's name, which `compare` and `atlas-128-gpu` do not have, although the
    latter names the shipped tokenizer."""
    command = ["make", "--dry-run", "--always-make", "train", f"RECIPE={recipe}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    trained = [line.partition("train_tokenizer ")[2] for line in done.stdout.splitlines() if "train_tokenizer" in line]
    assert [line[: len(tokenizer or "")] for line in trained] == ([] if tokenizer is None else [tokenizer])
    assert f"-m model.training --recipe model/recipes/{recipe}.toml" in done.stdout
