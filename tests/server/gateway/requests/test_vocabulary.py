"""A prompt with words that the model does not know gets a warning that names them."""

import dataclasses
import difflib

import pytest

from server.gateway.requests.resolve import resolve
from server.gateway.requests.vocabulary import NearestWords, vocabulary_warnings
from server.gateway.schemas.images import ImageRequest
from server.model_info import ModelInfo
from server.worker.engine.fake import FakeEngine

FAKE = ModelInfo.from_mapping(FakeEngine(1, 0).info())
INFO = dataclasses.replace(
    FAKE, vocabulary=("apple", "cat", "pine tree", "strawberry", "fox", "cactus", "snowman"), styles=("3d", "flat")
)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple, 3d style", "Two CATS and three strawberries on a blue background", "a snowman's apple", "foxes",
        "a small pine tree to the left of 4 cacti, flat style", "snowmen", "pine-tree", "🍎", "a picture of an apple",
    ],
)  # fmt: skip
def test_known_words_give_no_warning(prompt: str) -> None:
    assert vocabulary_warnings(prompt, INFO) == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a dragon", "dragon"),
        ("an appel", "appel (nearest: apple)"),
        ("a cat riding a zeppelin", "riding, zeppelin"),
        ("ein roter Apfel", "ein"),
        ("красное яблоко", "красное, яблоко"),
        ("wizard wizard WIZARD", ": wizard."),
        ("alfa bravo charlie delta echo foxtrot golf", "and 2 more"),
        ("z" * 500, "z" * 40 + "…"),
    ],
)
def test_unknown_words_are_named_with_the_nearest_known_ones(prompt: str, says: str) -> None:
    """Such a prompt gave an image of something else, with `warnings: []`."""
    [warning] = vocabulary_warnings(prompt, INFO)
    assert says in warning and "GET /v1/models" in warning


def test_other_names_of_known_things_give_no_warning() -> None:
    """Training calls a cat a kitty now and then, and has irregular plurals: both were told to be unknown."""
    info = dataclasses.replace(INFO, synonyms=("kitty", "mice"))
    assert vocabulary_warnings("a kitty and two mice", info) == []
    assert "nearest" not in vocabulary_warnings("a kitti", info)[0], "names of the vocabulary alone are suggested"


def test_only_models_that_publish_a_vocabulary_warn() -> None:
    """A text-to-image model without one may know any word; a class-conditional one refuses what it does not know."""
    assert vocabulary_warnings("a dragon", dataclasses.replace(INFO, vocabulary=())) == []
    assert vocabulary_warnings("a dragon", dataclasses.replace(INFO, labels=("apple",))) == []
    _, warnings = resolve(ImageRequest(prompt="a dragon"), {INFO.id: INFO}, INFO.id)
    assert "dragon" in warnings[0]


def test_the_nearest_word_is_that_of_a_full_comparison() -> None:
    """Only the names with the most letter pairs in common are compared: the nearest must be among them."""
    syllables = ("ba", "cor", "dun", "fel", "gri", "ho", "mas", "nel", "pi", "ras", "sto", "tul")
    vocabulary = tuple(f"{a}{b}{c}" for a in syllables for b in syllables for c in syllables)
    nearest = NearestWords(vocabulary)
    for name in vocabulary[::97]:
        for slip in (name[:2] + name[3:], name[:-2] + name[-1] + name[-2], "x" + name):
            best = difflib.get_close_matches(slip, vocabulary, n=1)[0]
            found = nearest.find(slip)[0]
            assert (
                difflib.SequenceMatcher(None, slip, found).ratio() >= difflib.SequenceMatcher(None, slip, best).ratio()
            )
