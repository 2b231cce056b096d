"""`fluid import` finds the kind of published weights by itself, and their licence reaches the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import CheckpointError
from model.conversion import kinds
from model.inference.load import load_engine
from server.cli.main import main
from server.images.recipe import make_recipe
from server.model_info import ModelInfo
from tests.model import kl_restated, mar_restated
from tests.server.harness import job_input


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    """An official MAR file, with the autoencoder beside it."""
    save_file(mar_restated.random_state(classes=1000), tmp_path / "mar.safetensors")
    torch.save({"model": kl_restated.random_state()}, tmp_path / "kl16.ckpt")
    return tmp_path / "mar.safetensors"


def test_files_of_old_torch_are_read(mar: Path) -> None:
    """They were called damaged, and to be downloaded again: only archives can be mapped into memory."""
    file = mar.parent / "kl16.ckpt"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert main(["import", str(mar), str(mar.parent / "mar-b"), "--heads", "4"]) == 0


def test_the_command_finds_the_kind_and_the_licence_reaches_the_image(mar: Path) -> None:
    target = mar.parent / "mar-b"
    assert main(["import", str(mar), str(target), "--heads", "4"]) == 0
    info = ModelInfo.from_mapping(load_engine(str(target), 1, "cpu", 0).info())
    assert (info.license, info.source, info.conditions) == ("MIT", "https://github.com/LTH14/mar", "")
    conditional = replace(info, conditions="attribution")
    recipe = make_recipe(job_input(), 0, "ab" * 32, conditional.terms)
    named = {name: value for name, value in recipe.items() if name.startswith("model_")}
    assert named == {"model_license": "MIT", "model_conditions": "attribution", "model_source": info.source}


def test_a_source_of_no_kind_lists_them_and_an_ambiguous_one_asks(mar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = mar.with_name("other.safetensors")
    save_file({"lm_head.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(CheckpointError, match=r"of no kind that can be imported(.|\n)*mar +an official"):
        kinds.import_weights(other, mar.parent / "out")
    with pytest.raises(CheckpointError, match="does not exist"):
        kinds.import_weights(mar.with_name("nowhere"), mar.parent / "out")
    with pytest.raises(CheckpointError, match="'sdxl' is not known; there are mar"):
        kinds.import_weights(mar, mar.parent / "out", "sdxl")
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, replace(kinds.KINDS[0], name="twin")))
    with pytest.raises(CheckpointError, match="could be mar and twin; choose one with --kind"):
        kinds.import_weights(mar, mar.parent / "out")
    assert not (mar.parent / "out").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("text_token_len"), "mar.safetensors does not fit: KeyError: 'text_token_len'; download it again"),
        (AttributeError("'list' object has no attribute 'values'"), "does not fit: AttributeError: 'list' object"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory .*; use a machine"),
        (CheckpointError("key 'x' is missing"), "^key 'x' is missing$"),
    ],
)
def test_files_that_are_read_and_yet_odd_are_named(
    mar: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    """A null or another type in a JSON file, where the released ones have a number, was a traceback."""

    def convert(*_: object) -> str:
        raise error

    monkeypatch.setattr(kinds, "KINDS", (replace(kinds.KINDS[0], convert=convert),))
    with pytest.raises(CheckpointError, match=message):
        kinds.import_weights(mar, mar.parent / "out")
    assert not (mar.parent / "out").exists()
