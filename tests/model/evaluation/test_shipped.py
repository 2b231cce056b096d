"""The shipped checkpoint: size, words, and a model card that agrees with its files."""

from __future__ import annotations

import hashlib

import pytest
import torch

from model.checkpoint import load_checkpoint, read_config
from model.data.atlas.known_words import other_names
from model.data.scenes.things import BACKGROUNDS, STYLES, THINGS, TRANSPARENT
from model.data.scenes.wording import caption_words
from model.evaluation.detector import WEIGHTS, load_detector
from model.evaluation.generation import default_sampling, generate_images
from model.inference.load import SHIPPED, find_checkpoint
from model.inference.serving import ServingEngine
from model.networks.tokenizer import to_pixels

FOLDER = SHIPPED / "atlas-128"


def test_atlas_128_loads_strictly_and_is_small() -> None:
    checkpoint = load_checkpoint(find_checkpoint("atlas-128"))
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 24 * 2**20
    about = checkpoint.about
    assert set(about["vocabulary"]) == set(list(THINGS)[:95]) and set(about["styles"]) == set(STYLES)
    assert about["synonyms"] == other_names(about["vocabulary"])
    assert about["caption_words"] == caption_words() and about["backgrounds"] == [*BACKGROUNDS, TRANSPARENT]
    assert {name for names in about["hints"].values() for name in names} <= set(about["breadth"])
    assert about["hints"]["aubergine"] == ["eggplant"] and "hot beverage" in about["hints"]["coffee"]
    assert len(about["breadth"]) > 900 and about["breadth_styles"] == ["twemoji", "noto"]


def test_scores_and_card_of_atlas_128_belong_to_its_weights() -> None:
    """Weights and metrics must not drift apart: the evaluation names the hash of the weights that it scored."""
    raw = read_config(FOLDER)
    metrics, card = raw["about"]["metrics"], (FOLDER / "README.md").read_text()
    assert metrics["checkpoint_sha256"] == raw["sha256"] and raw["sha256"] in card
    assert metrics["checker_ceiling"] >= 0.95 and metrics["checker_reject"] >= 0.95
    assert f"{metrics['score_seen']:.1%}" in card and f"{metrics['score_unseen']:.1%}" in card


@pytest.mark.parametrize("name", ["sheet.webp", "breadth-sheet.webp", "failures.webp", "curve.png"])
def test_the_card_of_atlas_128_shows_its_sheets(name: str) -> None:
    assert f"({name})" in (FOLDER / "README.md").read_text() and (FOLDER / name).stat().st_size > 1000


def test_the_shipped_detector_judges_what_the_shipped_model_draws() -> None:
    """It knows the model's things and styles, and finds in most images of one thing that thing, and nothing in none."""
    folder = SHIPPED / "scenes-detector"
    detector, checkpoint = load_detector(folder), load_checkpoint(FOLDER)
    assert list(detector.things) == list(THINGS)[:95] and detector.styles == STYLES
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text() and digest == checkpoint.about["metrics"]["checker_sha256"]

    engine = ServingEngine(checkpoint, max_rows=8)
    asked = {"apple": "a red apple", "cat": "a cat", "rocket": "a rocket", "star": "a star", "pizza": "a pizza",
             "snowman": "a snowman", "guitar": "a guitar", "fish": "a fish"}  # fmt: skip
    images = generate_images(engine, [f"{what}, 3d style" for what in asked.values()], default_sampling(engine))
    found = [{d.thing for d in each} for each in detector.detect(to_pixels(torch.from_numpy(images)))]
    assert sum(each == {thing} for thing, each in zip(asked, found, strict=True)) >= 6, found
    assert detector.detect(torch.ones(1, 3, 128, 128)) == [[]]
