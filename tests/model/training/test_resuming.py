"""A run goes on with what it began with, or says what is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import save_checkpoint
from model.config import ConfigError
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import package_folder
from model.presets import PRESETS
from model.training.loop import train
from model.training.recipe import Recipe
from model.training.reconstruction.load import tokens_digest
from model.training.run import Run, config_of, prepare
from model.training.train import run_recipe
from tests.model.image_set import squares

RECIPE = Path("model/recipes/emoji-64.toml")


def tokenizer_file(file: Path, seed: int) -> str:
    torch.manual_seed(seed)
    save_file({k: v.contiguous() for k, v in new_tokenizer(PRESETS["tiny"]).state_dict().items()}, file)
    return str(file)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    squares().save(tmp_path / "data")
    return Recipe.load(
        RECIPE, preset="tiny", data=str(tmp_path / "data"), tokenizer=tokenizer_file(tmp_path / "a.safetensors", 1),
        out=str(tmp_path / "out"), minutes=0.0, steps=2, batch=8, save_every=1, compile=False, anneal_minutes=0.0,
    )  # fmt: skip


def trained(recipe: Recipe) -> Run:
    run, _ = prepare(recipe)
    for _ in train(run, progress=False):
        pass
    return run


def test_weights_are_not_trained_on_with_the_tokens_of_another_tokenizer(recipe: Recipe, tmp_path: Path) -> None:
    """A tokenizer that was trained again beside a finished run got into its checkpoint, whose images were noise."""
    run, (_, tokenizer) = trained(recipe), prepare(recipe)
    other = replace(recipe, tokenizer=tokenizer_file(tmp_path / "b.safetensors", 2))
    with pytest.raises(ConfigError, match="began with another tokenizer: restore it, or choose another --out"):
        run_recipe(other, float("inf"))
    assert not (tmp_path / "out" / "checkpoint").exists()
    save_checkpoint(tmp_path / "rounded", run.model, tokenizer, {"name": "tiny"})
    assert prepare(replace(recipe, tokenizer=str(tmp_path / "rounded")))[0].resume()


def test_a_sharper_decoder_makes_the_same_tokens() -> None:
    """It goes into a checkpoint whose training can go on; what a checkpoint rounds makes no other tokens."""
    torch.manual_seed(1)
    tokenizer = new_tokenizer(PRESETS["tiny"])
    digest = tokens_digest(tokenizer)
    rounded = {name: value.bfloat16().to(value.dtype) for name, value in tokenizer.state_dict().items()}
    again = new_tokenizer(PRESETS["tiny"])
    again.load_state_dict(rounded)
    assert tokens_digest(again) == digest
    again.synthesis.weight.data += 1  # type: ignore[union-attr]
    assert tokens_digest(again) == digest
    again.analysis.weight.data += 1  # type: ignore[union-attr]
    assert tokens_digest(again) != digest


def test_a_run_on_other_data_is_another_run(recipe: Recipe) -> None:
    """Its checkpoint named the data, vocabulary and held-out styles of the last command for all of its steps."""
    run = trained(recipe)
    assert set(run.made_of) == {"tokenizer", "data"}
    later, _ = prepare(recipe)
    later.made_of |= {"data": "0" * 64}
    later.learner.save(recipe.state_file, history=[], started_from={}, made_of=run.made_of | {"data": "1" * 64})
    with pytest.raises(ConfigError, match="began with another data"):
        later.resume()
    run.learner.save(recipe.state_file, history=[])  # as earlier versions did
    assert later.resume()


def test_the_weight_decay_of_a_resumed_run_is_the_recipes(recipe: Recipe) -> None:
    """That of the state won without a word, where every other flag overrides."""
    for optimizer in ("adamw", "muon"):
        kind = replace(recipe, optimizer=optimizer, out=f"{recipe.out}-{optimizer}")
        trained(kind)
        run, _ = prepare(replace(kind, weight_decay=0.125))
        before = [group["weight_decay"] for group in run.learner.optimizer.param_groups]
        assert run.resume() and 0.125 in before
        assert [group["weight_decay"] for group in run.learner.optimizer.param_groups] == before


def test_an_encoder_that_trains_is_the_one_that_serves(recipe: Recipe, tmp_path: Path) -> None:
    """Of presets with a packaged encoder the checkpoint named that one, whatever had given the states."""
    atlas = Recipe.load(Path("model/recipes/atlas-128.toml"), text_encoder=str(tmp_path / "bge"))
    (tmp_path / "bge").mkdir()
    (tmp_path / "bge" / "model.safetensors").write_bytes(b"others")
    text = config_of(atlas).text
    assert (text.kind, text.name) == ("transformers", str(tmp_path / "bge"))
    packaged = PRESETS["atlas-128"].text
    copy = replace(atlas, text_encoder=str(package_folder(packaged.name)))  # as a portable run has
    assert config_of(copy).text == packaged
