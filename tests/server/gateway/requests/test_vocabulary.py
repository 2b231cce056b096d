"""A prompt with words that the model does not know gets a warning that names them."""

import dataclasses
import difflib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.data.atlas.wording import indefinite
from model.data.scenes.facts import Grammar
from model.data.scenes.things import STYLES, TRANSPARENT
from model.data.scenes.wording import caption
from model.inference.load import SHIPPED
from server.gateway.requests.resolve import resolve
from server.gateway.requests.vocabulary.nearest import NearestWords
from server.gateway.requests.vocabulary.tokens import LONGEST, split
from server.gateway.requests.vocabulary.warnings import prompt_warnings
from server.gateway.schemas.images import ImageRequest
from server.model_info import ModelInfo
from server.worker.engine.fake import FakeEngine
from tests.model.image_set import discs

FAKE = ModelInfo.from_mapping(FakeEngine(1, 0).info())
INFO = dataclasses.replace(
    FAKE, vocabulary=("apple", "cat", "pine tree", "strawberry", "fox", "cactus", "snowman"), styles=("3d", "flat")
)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple, 3d style", "Two CATS and three strawberries on a blue background", "a snowman's apple", "foxes",
        "a small pine tree to the left of 4 cacti, flat style", "snowmen", "pine-tree", "a picture of an apple",
    ],
)  # fmt: skip
def test_known_words_give_no_warning(prompt: str) -> None:
    assert prompt_warnings(prompt, INFO) == []


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
    [warning] = prompt_warnings(prompt, INFO)
    assert says in warning and "GET /v1/models" in warning


def test_other_names_of_known_things_give_no_warning() -> None:
    """Training calls a cat a kitty now and then, and has irregular plurals: both were told to be unknown."""
    info = dataclasses.replace(INFO, synonyms=("kitty", "mice", "bunches of grapes"))
    assert prompt_warnings("a kitty and two mice", info) == []
    assert prompt_warnings("a bunch of grapes", info) == [], "the singular of a name that is known in the plural"
    assert "kitti (nearest: kitty)" in prompt_warnings("a kitti", info)[0]


#: As a model publishes it that draws scenes of a few things, and others one at a time.
ATLAS = dataclasses.replace(
    INFO,
    vocabulary=("cat", "apple", "heart", "pine tree", "weary cat", "green apple", "dragon face", "eggplant", "robot"),
    synonyms=("kitty",),
    breadth=("weary cat", "green apple", "dragon face", "eggplant", "robot"),
    breadth_styles=("twemoji", "noto"),
    styles=("3d", "twemoji", "noto"),
    caption_words=("one", "two", "three", "four", "red", "green", "left", "right", "of", "to", "small", "picture"),
    backgrounds=("white", "blue", "transparent"),
    hints={"aubergine": ("eggplant",), "pet": ("cat", "robot"), "dragon": ("robot",)},
    max_prompt_tokens=20,
)


@pytest.mark.parametrize(
    "prompt",
    [
        "four cats, 3d style on a transparent background", "a small red apple to the left of a cat", "3 kitties",
        "an eggplant, noto style", "robot", "two pine trees in twemoji style on a blue background", "a 3d cat",
        "a green apple to the left of a cat, 3d style", "please draw me a picture of a green apple", "weary cats",
        "dragon faces, noto",
    ],
)  # fmt: skip
def test_what_a_model_was_trained_on_gives_no_warning(prompt: str) -> None:
    """A transparent background was told to be unknown, in the words of the documentation."""
    assert prompt_warnings(prompt, ATLAS) == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("an appel", "appel (nearest: apple"),  # it was "green apple", the last name with such a part
        ("a catt", "catt (nearest: cat"),
        ("an aubergine", "aubergine (nearest: eggplant)"),
        ("a pet", "pet (nearest: cat, robot)"),  # a word of several things was looked up by its letters
        ("a dragon", "dragon (nearest: dragon face, robot)"),  # a part of a name is no name
        ("a weary apple", "weary (nearest: weary cat)"),
        ("a cat, notto style", "notto style (styles: 3d, twemoji, noto)"),
        ("a cat in the style of Monet", "monet"),
        ("a photo of a cat", "photo"),
        ("a cat without a robot", "without"),
        ("a violet cat", "violet"),
        ("a cat on a red background", "red background (backgrounds: white, blue, transparent)"),
        ("a cat behind an apple", "behind"),
        ("🐱 and 👩‍🚀", "🐱 (nearest: cat), 👩‍🚀"),
        ("five cats", "counts beyond 4, the largest that"),
        ("12 apples and 99999999999 cats", "12, 99999999999"),
        ("a dozen cats", "dozen"),
        ("!!!", "names no thing"),
        ("a red picture", "names no thing"),
        ("two robots", "robot: fake-256 has learned such things one at a time, in the styles twemoji and noto alone"),
        ("a robot next to a cat", "robot"),
        ("a robot, 3d style", "robot"),
        ("a cat " * 11, "22 words; fake-256 reads the first 20 tokens"),
    ],
)
def test_what_a_model_was_not_trained_on_is_told(prompt: str, says: str) -> None:
    """All of these gave an image of something else with `warnings: []`, or named words that have little to do with
    them."""
    info = dataclasses.replace(ATLAS, id="fake-256")
    assert any(says in warning for warning in prompt_warnings(prompt, info)), prompt_warnings(prompt, info)


def test_captions_of_the_shipped_models_training_give_no_warning() -> None:
    """Their grammar is in model/, the check in server/: a word that only one of them knew went unnoticed."""
    about = json.loads((SHIPPED / "atlas-128" / "config.json").read_text())["about"]
    names = ("synonyms", "breadth", "breadth_styles", "styles", "backgrounds", "caption_words")
    vocabulary = (*about["vocabulary"], *about["breadth"])
    info = dataclasses.replace(
        INFO, vocabulary=vocabulary, hints=about["hints"], **{name: tuple(about[name]) for name in names}
    )
    things = tuple(about["vocabulary"])
    grammar = Grammar(discs(things), things, STYLES)
    for number in range(2000):
        rng = np.random.default_rng(number)
        facts = grammar.sample(rng)
        if facts.background == "white" and number % 2:
            facts = dataclasses.replace(facts, background=TRANSPARENT)
        text = caption(facts, rng)
        assert prompt_warnings(text, info) == [], text
    for noun in about["breadth"]:
        assert prompt_warnings(f"{indefinite(noun)}, noto style on a pink background", info) == []


def test_only_the_words_that_are_named_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 300 unknown words took 60 ms of the gateway, in which it does nothing else."""
    looked_up: list[str] = []
    monkeypatch.setattr(NearestWords, "find", lambda self, word: looked_up.append(word) or [])
    text = " ".join(f"{a}{b}" for a in ("zor", "quil", "brem", "fast") for b in "abcdefghijklmnopqrstuvwxyz")
    [warning] = prompt_warnings(text, dataclasses.replace(ATLAS, max_prompt_tokens=0))
    assert looked_up == ["zora", "zorb", "zorc", "zord", "zore"] and "and 99 more" in warning


def test_a_long_word_is_kept_in_no_cache() -> None:
    """Eight thousand words of 2,000 letters each stayed in the memory of every gateway."""
    [word] = split("z" * 2000)
    assert len(word) == LONGEST


def test_warnings_do_not_depend_on_the_hash_of_words() -> None:
    """Two gateways, or one before and after its restart, told different things about one prompt."""
    code = (
        "from tests.server.gateway.requests.test_vocabulary import ATLAS, dataclasses, prompt_warnings\n"
        "names = ('glasses', 'glass of milk', 'cradle', 'castle', 'candle', 'cable', 'couple of cats', 'oxen', 'ox')\n"
        "info = dataclasses.replace(ATLAS, vocabulary=names, breadth=names)\n"
        "texts = ('two glasses of milk', 'a cadle', 'a coupel', 'an ox', 'glass')\n"
        "print([prompt_warnings(text, info) for text in texts])"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parents[4],
            capture_output=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(told) == 1 and b"names glass of milk" in told.pop()


def test_a_negative_prompt_need_not_name_a_thing() -> None:
    assert prompt_warnings("red", ATLAS, "negative_prompt") == []
    assert prompt_warnings("a robot, 3d style", ATLAS, "negative_prompt") == []
    assert "'negative_prompt'" in prompt_warnings("blurry", ATLAS, "negative_prompt")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat's jack-o'-lantern_2", ["a", "cat", "jack", "o", "lantern", "2"]),
        ("pin\u0303ata", ["pi\u00f1ata"]),  # decomposed, as macOS writes it
        ("हिन्दी", ["हिन्दी"]),
        ("👩🏽‍🚀🐱❤️", ["👩🏽‍🚀", "🐱", "❤️"]),
        ("a^b", ["a", "b"]),
        ("\u0301 ' \u200d", []),
    ],
)
def test_words_keep_their_accents_and_emoji_their_parts(text: str, words: list[str]) -> None:
    """Words that were typed with combining marks fell into single letters."""
    assert split(text) == words
    assert prompt_warnings("piñata", dataclasses.replace(INFO, vocabulary=("pinata",))) == []


def test_only_models_that_publish_a_vocabulary_warn() -> None:
    """A text-to-image model without one may know any word; a class-conditional one refuses what it does not know."""
    assert prompt_warnings("a dragon", dataclasses.replace(INFO, vocabulary=())) == []
    assert prompt_warnings("a dragon", dataclasses.replace(INFO, labels=("apple",))) == []
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
