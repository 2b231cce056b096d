"""The shipped checkpoints: size, vocabulary, and model cards that agree with their files."""

from __future__ import annotations

import pytest

from model.checkpoint import load_checkpoint, read_config
from model.inference.load import SHIPPED, find_checkpoint

FOLDER = SHIPPED / "emoji-64"


def test_emoji_64_loads_strictly_and_is_small() -> None:
    checkpoint = load_checkpoint(find_checkpoint("emoji-64"))
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) < 16 * 2**20
    assert len(checkpoint.about["vocabulary"]) >= 400 and len(checkpoint.about["styles"]) == 4


def test_scores_of_emoji_64_belong_to_its_weights() -> None:
    """Weights and metrics must not drift apart: the evaluation names the hash of the weights that it scored."""
    raw = read_config(FOLDER)
    assert raw["about"]["metrics"]["checkpoint_sha256"] == raw["sha256"]
    assert raw["about"]["metrics"]["r_precision_trained"] >= 0.7
    assert raw["about"]["metrics"]["r_precision_ceiling"] >= 0.95


@pytest.mark.parametrize("name", ["sheet.webp", "failures.webp", "curve.png"])
def test_the_card_of_emoji_64_shows_its_sheets_and_figures(name: str) -> None:
    card, metrics = (FOLDER / "README.md").read_text(), read_config(FOLDER)["about"]["metrics"]
    if name == "failures.webp" and metrics["r_precision_trained"] == 1:  # there is nothing to show
        assert name not in card and not (FOLDER / name).exists()
        return
    assert f"({name})" in card and (FOLDER / name).stat().st_size > 1000
    assert f"{metrics['r_precision_trained']:.1%}" in card and read_config(FOLDER)["sha256"] in card


def test_scores_and_card_of_scenes_128_belong_to_its_weights() -> None:
    folder = SHIPPED / "scenes-128"
    checkpoint, metrics = load_checkpoint(folder), read_config(folder)["about"]["metrics"]
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 20 * 2**20
    assert metrics["checkpoint_sha256"] == checkpoint.sha256
    assert metrics["checker_ceiling"] >= 0.95 and metrics["checker_reject"] >= 0.95
    card = (folder / "README.md").read_text()
    assert f"{metrics['score_seen']:.1%}" in card and f"{metrics['score_unseen']:.1%}" in card
