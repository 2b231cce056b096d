"""Validation loss: of every family, on any data, the same number at every run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.config import ConfigError, MarConfig, TokenizerConfig
from model.data.dataset import Dataset
from model.evaluation.evaluate import main
from model.evaluation.validation_loss import open_splits, validation_loss
from model.networks.factory import build_tokenizer
from model.networks.mar import Mar
from tests.model.conftest import SYSTEMS, random_model, system_config
from tests.model.image_set import squares
from tests.model.imported_models import conditioner_of, imported_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each system and the squares."""
    base = tmp_path_factory.mktemp("loss")
    for system in SYSTEMS:
        model = random_model(system_config(system))
        save_checkpoint(base / system, model, build_tokenizer(model.config.tokenizer), {"name": system})
    squares().save(base / "data")
    return base


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_runs_agree_to_the_bit_and_the_seed_decides(folders: Path, system: str) -> None:
    checkpoint, splits = load_checkpoint(folders / system), open_splits(folders / "data", 8, 48, 16)
    first, again, other = (validation_loss(checkpoint, splits, 8, CPU, seed) for seed in (0, 0, 1))
    assert first == again and first["system"] == system and list(splits) == ["train"]
    assert math.isfinite(first["loss"]) and first["loss"] == first["loss_train"] > 0
    assert first["images_train"] == 8 and first["psnr_train_db"] > 0
    assert ("codes_used" in first) == (system.endswith("discrete"))
    # Raster order over codes has nothing to draw: all tokens are predicted, and their probabilities are given.
    assert (first["loss"] == other["loss"]) == (system == "raster-discrete")
    if system.startswith("raster"):
        assert first["tokens_train"] == 8 * checkpoint.config.tokens


def test_a_model_that_knows_nothing_has_the_entropy_of_the_codebook(folders: Path) -> None:
    checkpoint = load_checkpoint(folders / "raster-discrete")
    checkpoint.model.table.zero_()
    report = validation_loss(checkpoint, open_splits(folders / "data", 8, 48, 16), 8, CPU)
    assert report["loss"] == pytest.approx(math.log(32), abs=1e-5)


def test_splits_that_were_not_trained_come_first(tmp_path: Path) -> None:
    data = squares()
    data.items[0], data.items[1] = replace(data.items[0], split="unseen"), replace(data.items[1], split="heldout")
    data.save(tmp_path)
    splits = open_splits(tmp_path, 8, 48, 16)
    assert {name: len(part.items) for name, part in splits.items()} == {"heldout": 1, "unseen": 1, "train": 6}
    assert np.array_equal(splits["heldout"].images[0], data.images[1])


def test_images_of_another_size_are_fitted(folders: Path) -> None:
    data = squares()
    large = Dataset(data.images.repeat(2, 1).repeat(2, 2), data.items, data.about)
    checkpoint = load_checkpoint(folders / "random-continuous")
    small, fitted = (validation_loss(checkpoint, {"train": each}, 8, CPU)["loss"] for each in (data, large))
    assert fitted == pytest.approx(small, rel=0.1)


def test_the_last_line_is_json(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--loss", str(folders / "random-discrete"), "--data", str(folders / "data"), "--out", str(tmp_path)]
    main(argv)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "loss.json").read_text())
    assert report["checkpoint"] == "random-discrete" and len(report["checkpoint_sha256"]) == 64
    assert report["loss_of"] == "cross-entropy, nats per token" and report["codes"] == 32


def test_a_number_of_things_is_only_for_scenes(folders: Path) -> None:
    """It was without effect on packed images."""
    with pytest.raises(SystemExit, match=r"--things 12 is only for data of scenes, which .*data does not hold"):
        main(["--loss", str(folders / "random-discrete"), "--data", str(folders / "data"), "--things", "12"])


def test_a_model_of_classes_takes_captions_that_are_its_labels(folders: Path, tmp_path: Path) -> None:
    labels = [item.captions[0] for item in squares().items]
    config = MarConfig(
        image_size=16, width=32, heads=2, encoder_depth=1, decoder_depth=1, buffer=2, head_width=32, head_depth=1,
        classes=8, tokenizer=TokenizerConfig(stride=4, channels=4, widths=(8, 8, 8)),
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "mar", Mar(config), build_tokenizer(config.tokenizer), {"labels": labels})
    splits = open_splits(folders / "data", 8, 48, 16)
    report = validation_loss(load_checkpoint(tmp_path / "mar"), splits, 8, CPU)
    assert report["loss_of"] == "eps" and report["loss"] == pytest.approx(1, abs=0.5)  # its head starts at zero
    save_checkpoint(tmp_path / "mar", Mar(config), build_tokenizer(config.tokenizer), {"labels": [*labels[:7], "cat"]})
    with pytest.raises(SystemExit, match="'black square right' is not one of this model's 8 labels"):
        main(["--loss", str(tmp_path / "mar"), "--data", str(folders / "data"), "--out", str(tmp_path)])


def imported(family: str) -> Checkpoint:
    pytest.importorskip("diffusers")
    model = imported_model(family)
    return Checkpoint(model, build_tokenizer(model.config.tokenizer).eval(), {}, "0" * 64, Path("here"))


@pytest.mark.parametrize("family", ["amused", "janus"])
def test_imported_families_read_the_text_encoder_in_their_folder(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was sought in the working directory, and prompts of two lengths did not fit into one batch."""
    seen = []

    def conditioner(model: object, about: object, folder: Path) -> object:
        seen.append(folder)
        return conditioner_of(model)  # type: ignore[arg-type]

    monkeypatch.setattr("model.evaluation.validation_loss.build_conditioner", conditioner)
    data = squares()
    data.items[0] = replace(data.items[0], captions=("word " * 60,))
    report = validation_loss(imported(family), {"train": data}, 4, CPU)
    assert seen == [Path("here")] and math.isfinite(report["loss"])


def test_a_family_whose_loss_is_another_is_refused() -> None:
    """Meissonic was measured at one time for all masks, NOVA on a chain that is not its own."""
    with pytest.raises(ConfigError, match=r"family 'meissonic', whose .* Measure a checkpoint of family fluid"):
        validation_loss(imported("meissonic"), {"train": squares()}, 4, CPU)
