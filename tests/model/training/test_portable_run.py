"""Legs of training on a machine that is lent for minutes, rehearsed at tiny size with real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.config import ConfigError
from model.data.scenes.things import THINGS
from model.data.sources import DataError
from model.networks.random_order_model import Fluid
from model.networks.text_encoder import TransformersEncoder, package_folder
from model.presets import PRESETS
from model.training.portable_run import LegError, join, pack, split
from model.training.recipe import Recipe
from model.training.run import start_from
from model.training.text_pruning import prune_text_encoder
from model.training.trainer import load_state
from tests.model.picture_set import discs

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "model/checkpoints/scenes-128"


def recipe_text(data: Path, **changes: object) -> str:
    """The recipe of the shipped checkpoint with other values."""
    text = (ROOT / "model/recipes/scenes-128.toml").read_text()
    values = {"data": data, "compile": False, "captions": 24, "things": 3, "styles": ["flat", "noto"], **changes}
    for key, value in values.items():
        lines = text.splitlines()
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[place] = f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        text = "\n".join(lines)
    return text


@pytest.fixture
def scene_sprites(tmp_path: Path) -> Path:
    discs(tuple(THINGS)[:6]).save(tmp_path / "sprites")
    return tmp_path / "sprites"


def run(*command: object, cwd: Path) -> str:
    """Without a time limit: a slow CPU passed one of 300 s, with nothing else wrong."""
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_legs_on_two_machines(tmp_path: Path, scene_sprites: Path) -> None:
    """Packed here, trained there, brought back in parts, gone on with elsewhere: steps, clock and curve go on, and the
    last leg's checkpoint is the shipped model's size. Everything by the commands that docs and help print.

    The lesson before the first leg has two steps: its recipe's 1,000 alone took a CPU of AVX2 over five minutes.
    """
    changes = {"tokenizer": SHIPPED, "batch": 2, "minutes": 0, "steps": 6, "save_every": 2, "noise_draws": 1}
    changes |= {"reading_steps": 2}
    (tmp_path / "recipe.toml").write_text(recipe_text(scene_sprites, **changes))
    assert "MiB in" in run(
        "model.legs", "pack", "--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "leg", cwd=ROOT
    )
    taken = tmp_path / "there" / "leg"
    shutil.move(tmp_path / "leg", taken)
    (taken / "recipe.toml").write_text((taken / "recipe.toml").read_text().replace(str(tmp_path / "leg"), str(taken)))
    train = ["model.train", "--recipe", taken / "recipe.toml"]
    first = run(*train, "--leg-minutes", 0.0001, "--out", tmp_path / "a", cwd=ROOT)
    assert "1 steps" in first and "17% of the budget" in first
    assert "parts" in run("model.legs", "split", tmp_path / "a", tmp_path / "parts", cwd=ROOT)
    parts = list((tmp_path / "parts").iterdir())
    assert 1 < len(parts) <= 8 and all(part.stat().st_size <= 16 * 2**20 for part in parts)
    run("model.legs", "join", tmp_path / "parts", tmp_path / "b", cwd=ROOT)
    before, after = (load_state(tmp_path / name / "state.pt") for name in "ab")
    assert before is not None and after is not None and before["step"] == after["step"] == 1
    assert all(torch.equal(before["model"][key], value) for key, value in after["model"].items())

    last = run(*train, "--out", tmp_path / "b", cwd=ROOT)
    assert "at step 1" in last and "5 steps" in last and "budget" not in last
    assert [entry[0] for entry in json.loads((tmp_path / "b/history.json").read_text())] == [1, 2, 4, 6]
    assert load_checkpoint(tmp_path / "b/checkpoint").config == PRESETS["scenes-128"]


def test_a_leg_may_begin_with_the_weights_of_a_checkpoint() -> None:
    torch.manual_seed(0)
    shipped = load_checkpoint(SHIPPED)
    fresh = Fluid(PRESETS["scenes-128"])
    start_from(fresh, SHIPPED)
    assert all(torch.equal(value, shipped.model.state_dict()[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(ConfigError, match=r"start_from.*other sizes"):
        start_from(Fluid(PRESETS["tiny"]), SHIPPED)


def test_a_pruned_encoder_says_the_same(tmp_path: Path) -> None:
    config = PRESETS["scenes-128"].text
    captions = [
        "",
        "a blue apple to the left of 3 cacti, 3d style",
        "an owl over a jack-o'-lantern on a gray background",
    ]
    source = package_folder(config.name)
    kept = prune_text_encoder(source, captions, tmp_path)
    assert 20 < kept < 60
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 24 * 2**20
    whole, pruned = TransformersEncoder(config, str(source)), TransformersEncoder(config, str(tmp_path))
    (states, mask), (close, same) = whole.encode(captions), pruned.encode(captions)
    assert torch.equal(mask, same)
    assert (states - close).norm() / states.norm() < 0.003


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/state.pt").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "run/history.json").write_text("[]")
    split(tmp_path / "run", tmp_path / "parts", part_bytes=2**15)
    return tmp_path / "parts"


def test_parts_make_the_same_files_again(parts: Path, tmp_path: Path) -> None:
    join(parts, tmp_path / "again")
    for name in ("state.pt", "history.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_what_cannot_be_joined_says_why(parts: Path, tmp_path: Path) -> None:
    second = sorted(parts.iterdir())[1]
    kept = second.read_bytes()
    second.write_bytes(b"x" + kept[1:])
    with pytest.raises(LegError, match="damaged"):
        join(parts, tmp_path / "again")
    second.unlink()
    with pytest.raises(LegError, match="part 2 of 4 is missing"):
        join(parts, tmp_path / "again")
    second.with_name("leg-0123456789ab-1-of-1.part").write_bytes(kept)
    with pytest.raises(LegError, match="parts of 2 legs"):
        join(parts, tmp_path / "again")


def test_what_cannot_be_split_or_packed_says_why(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(LegError, match=r"7 files of 0\.015625 MiB, more than 2"):
        split(tmp_path / "run", tmp_path / "few", part_bytes=2**14, most=2)
    with pytest.raises(LegError, match=r"no state\.pt"):
        split(tmp_path / "nothing", tmp_path / "few")
    with pytest.raises(LegError, match=r"no table \[scenes\]"):
        pack(ROOT / "model/recipes/emoji-64.toml", tmp_path / "leg")
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "no sprites"))
    with pytest.raises(DataError, match="make data"):
        pack(tmp_path / "recipe.toml", tmp_path / "leg")


def test_a_recipe_can_be_changed_by_one_key(tmp_path: Path) -> None:
    recipe = Recipe.load(ROOT / "model/recipes/scenes-128.toml")
    assert Recipe.load(ROOT / "model/recipes/scenes-128.toml", leg_minutes=8.0) == replace(recipe, leg_minutes=8.0)
