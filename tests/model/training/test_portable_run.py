"""Runs packed for another machine, rehearsed at tiny size with real processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import load_checkpoint
from model.config import ConfigError
from model.data.dataset import Dataset
from model.data.scenes.things import THINGS
from model.data.sources import DataError
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import TransformersEncoder
from model.presets import PRESETS
from model.training.portable_run import pack
from model.training.recipe import Recipe
from model.training.run import start_from, started_from
from tests.model.image_set import discs, squares

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "model/checkpoints/atlas-128"


def recipe_text(data: Path, **changes: object) -> str:
    """The recipe of the shipped checkpoint with other values."""
    text = (ROOT / "model/recipes/atlas-128.toml").read_text()
    small = {
        "compile": False,
        "captions": 24,
        "things": 3,
        "styles": ["flat", "noto"],
        "relation_steps": 2,
        "breadth": 0.0,
    }
    values = {"data": data, **small, **changes}
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


def test_a_packed_run_can_be_packed_again(scene_sprites: Path, tmp_path: Path) -> None:
    """Its own folder is the default one to fill: recipe, tokenizer and data were deleted before they were copied."""
    out = tmp_path / "packed"
    (tmp_path / "recipe.toml").write_text(recipe_text(scene_sprites, tokenizer=SHIPPED, start_from=SHIPPED))
    first = pack(tmp_path / "recipe.toml", out)
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*"))
    assert pack(out / "recipe.toml", out) == first
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*")) == files


def test_other_files_are_not_replaced_by_a_packed_run(scene_sprites: Path, tmp_path: Path) -> None:
    """`--out runs/atlas-128`, a slip away from the recipe's own folder, removed a training without a question."""
    out = tmp_path / "runs"
    out.mkdir()
    (out / "state.pt").write_bytes(b"hours")
    (tmp_path / "recipe.toml").write_text(recipe_text(scene_sprites, tokenizer=SHIPPED, start_from=SHIPPED))
    with pytest.raises(ConfigError, match="holds other files, which a portable run would remove"):
        pack(tmp_path / "recipe.toml", out)
    assert (out / "state.pt").read_bytes() == b"hours"


def run(*command: object, cwd: Path) -> str:
    """Run a module without a time limit: a slow CPU once exceeded 300 s, with nothing else wrong."""
    done = subprocess.run([sys.executable, "-m", *map(str, command)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_packed_run_trains_elsewhere_and_resumes_here(tmp_path: Path, scene_sprites: Path) -> None:
    """Pack, move the folder, stop after one step there and resume from a copy of the run: step, clock and curve
    continue, and the final checkpoint has the shipped model's sizes. Every command is one that the help prints."""
    changes = {"tokenizer": SHIPPED, "batch": 2, "minutes": 0, "steps": 6, "save_every": 2, "noise_draws": 1}
    changes |= {"relation_steps": 2}  # the 1,000 of its recipe alone took a CPU with AVX2 five minutes
    (tmp_path / "recipe.toml").write_text(recipe_text(scene_sprites, **changes))
    packed, there = tmp_path / "packed", tmp_path / "there"
    said = run("model.training.portable_run", "--recipe", tmp_path / "recipe.toml", "--out", packed, cwd=ROOT)
    assert f"MiB in {packed}" in said and f"--recipe {packed / 'recipe.toml'}" in said
    shutil.move(packed, there)
    shutil.rmtree(scene_sprites)
    (there / "recipe.toml").write_text((there / "recipe.toml").read_text().replace(str(packed), str(there)))
    train = ["model.training", "--recipe", there / "recipe.toml"]
    first = run(*train, "--stop-after-minutes", 0.0001, "--out", tmp_path / "a", cwd=ROOT)
    assert "1 steps" in first and "17% of the budget" in first
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    last = run(*train, "--out", tmp_path / "b", cwd=ROOT)
    assert "at step 1" in last and "5 steps" in last and "budget" not in last
    assert [entry[0] for entry in json.loads((tmp_path / "b/history.json").read_text())] == [1, 2, 4, 6]
    assert load_checkpoint(tmp_path / "b/checkpoint").config == PRESETS["atlas-128"]


def test_a_run_can_start_from_the_weights_of_a_checkpoint() -> None:
    torch.manual_seed(0)
    shipped = load_checkpoint(SHIPPED)
    fresh = Fluid(PRESETS["atlas-128"])
    start_from(fresh, SHIPPED)
    assert all(torch.equal(value, shipped.model.state_dict()[key]) for key, value in fresh.state_dict().items())
    recipe = Recipe.load(ROOT / "model/recipes/atlas-128.toml", start_from=str(SHIPPED))
    known = started_from(recipe)
    assert (known["name"], known["sha256"]) == ("atlas-128", shipped.sha256) and known["training"]["steps"] > 0
    with pytest.raises(ConfigError, match=r"start_from.*other sizes.*0% of the values"):
        start_from(Fluid(PRESETS["tiny"]), SHIPPED)


def test_a_deeper_model_of_another_tokenizer_starts_as_the_same_function() -> None:
    """Blocks are taken over, new ones begin as identities, and only the tokens' own layers are random."""
    torch.manual_seed(0)
    shipped, config = load_checkpoint(SHIPPED).model, PRESETS["atlas-128"]
    deeper = Fluid(replace(config, depth=config.depth + 2, tokenizer=replace(config.tokenizer, channels=32)))
    assert 0.7 < start_from(deeper, SHIPPED) < 0.9
    deeper.backbone.token_in = shipped.backbone.token_in
    tokens, known = torch.randn(2, 64, config.channels), torch.rand(2, 64) < 0.5
    states, mask = torch.randn(2, 5, 384), torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        z = [m.backbone(tokens, known, m.backbone.encode_text(states, mask)) for m in (shipped, deeper)]
    assert torch.allclose(*z, atol=1e-5)


def test_a_packed_recipe_names_only_its_own_folder(tmp_path: Path) -> None:
    """Recipes of finished images are packed like those of scenes; the comments of untouched keys stay."""
    squares().save(tmp_path / "data")
    text = (ROOT / "model/recipes/emoji-64.toml").read_text()
    save_file(new_tokenizer(PRESETS["emoji-64"]).state_dict(), tmp_path / "tokenizer.safetensors")
    for key, value in {"data": tmp_path / "data", "tokenizer": tmp_path / "tokenizer.safetensors"}.items():
        text = re.sub(rf"(?m)^{key} = .*$", f'{key} = "{value}"', text)
    (tmp_path / "recipe.toml").write_text(text)
    out = tmp_path / "packed"
    assert pack(tmp_path / "recipe.toml", out) == sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    recipe = Recipe.load(out / "recipe.toml")
    assert {recipe.data, recipe.tokenizer, recipe.text_encoder} == {
        str(out / name) for name in ("data", "tokenizer.safetensors", "text_encoder")
    }
    assert recipe.start_from == "" and "# AdamW" in (out / "recipe.toml").read_text()
    assert Dataset.load(Path(recipe.data)).digest() == squares().digest()
    encoder = TransformersEncoder(PRESETS["emoji-64"].text, recipe.text_encoder)
    assert encoder.encode(["a red apple"])[1].any()


def test_missing_parts_are_named_before_anything_is_packed(tmp_path: Path, scene_sprites: Path) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "no sprites"))
    with pytest.raises(DataError, match="make data"):
        pack(tmp_path / "recipe.toml", tmp_path / "packed")
    (tmp_path / "recipe.toml").write_text(recipe_text(scene_sprites, tokenizer=tmp_path / "untrained.safetensors"))
    with pytest.raises(ConfigError, match=r"no tokenizer at .*train_tokenizer"):
        pack(tmp_path / "recipe.toml", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_recipe_can_be_overridden_by_one_key() -> None:
    recipe = Recipe.load(ROOT / "model/recipes/scenes-128.toml")
    assert Recipe.load(ROOT / "model/recipes/scenes-128.toml", minutes=8.0) == replace(recipe, minutes=8.0)
