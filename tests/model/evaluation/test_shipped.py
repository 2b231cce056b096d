"""The checkpoint in the repository: size, vocabulary, and a card that says what its own files say."""

from __future__ import annotations

import pytest

from model.checkpoint import load_checkpoint, read_config
from model.inference.load import SHIPPED, find_checkpoint

FOLDER = SHIPPED / "emoji-64"


def test_it_loads_strictly_and_fits_the_limit() -> None:
    checkpoint = load_checkpoint(find_checkpoint("emoji-64"))
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) < 16 * 2**20
    assert len(checkpoint.about["vocabulary"]) >= 400 and len(checkpoint.about["styles"]) == 4


def test_its_scores_belong_to_its_weights() -> None:
    """Weights and metrics must not drift apart: the evaluation names the hash of what it scored."""
    raw = read_config(FOLDER)
    assert raw["about"]["metrics"]["checkpoint_sha256"] == raw["sha256"]
    assert raw["about"]["metrics"]["r_precision_trained"] >= 0.7
    assert raw["about"]["metrics"]["r_precision_ceiling"] >= 0.95


@pytest.mark.parametrize("name", ["sheet.png", "failures.png", "curve.png"])
def test_the_card_shows_its_pictures_and_figures(name: str) -> None:
    card, metrics = (FOLDER / "README.md").read_text(), read_config(FOLDER)["about"]["metrics"]
    assert f"({name})" in card and (FOLDER / name).stat().st_size > 1000
    assert f"{metrics['r_precision_trained']:.1%}" in card and read_config(FOLDER)["sha256"] in card


def test_scenes_128_belongs_to_its_scores_and_its_card() -> None:
    folder = SHIPPED / "scenes-128"
    checkpoint, metrics = load_checkpoint(folder), read_config(folder)["about"]["metrics"]
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 20 * 2**20
    assert metrics["checkpoint_sha256"] == checkpoint.sha256
    assert metrics["checker_ceiling"] >= 0.95 and metrics["checker_reject"] >= 0.95
    card = (folder / "README.md").read_text()
    assert f"{metrics['score_seen']:.1%}" in card and f"{metrics['score_unseen']:.1%}" in card
