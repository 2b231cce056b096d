"""Captions of the breadth and variations of captions: each stays true of its image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.data.atlas.store import Entry
from model.data.atlas.wording import (
    DEFAULT_STYLE,
    entry_caption,
    entry_facts,
    entry_prompt,
    indefinite,
    misspelt,
    settle_style,
    varied,
)
from model.data.scenes.facts import Facts, Group, held_out
from model.data.scenes.things import COLOURS

LANTERN = Entry("lantern", "lantern", "noto", "train", styles=3, default=False, also=("lamp",), tags=("light",))


def rngs(count: int = 300) -> list[np.random.Generator]:
    return [np.random.default_rng(number) for number in range(count)]


def test_a_caption_names_thing_style_and_background() -> None:
    facts = entry_facts(LANTERN, np.random.default_rng(0), "blue")
    captions = {entry_caption(LANTERN, facts, rng) for rng in rngs()}
    assert all("noto style" in c and c.endswith("on a blue background") for c in captions)
    assert all(c.startswith(("lantern", "a lantern", "lamp", "a lamp")) for c in captions)
    assert any("(light)" in caption for caption in captions) and len(captions) >= 8


def test_only_the_default_style_may_go_unnamed() -> None:
    """ "a lantern" alone must always draw the same style."""
    facts = entry_facts(LANTERN, np.random.default_rng(0), "white")
    default = replace(LANTERN, default=True)
    assert all("style" in entry_caption(LANTERN, facts, rng) for rng in rngs())
    assert any("style" not in entry_caption(default, facts, rng) for rng in rngs())


def test_colours_are_named_and_no_held_out_one_is_trained() -> None:
    silhouette = replace(LANTERN, one_colour=True)
    assert all(entry_facts(silhouette, rng, "white").groups[0].colour for rng in rngs(50))
    apple = replace(LANTERN, noun="apple", colourable=True)
    used = {entry_facts(apple, rng, "white").groups[0].colour for rng in rngs()}
    assert "" in used and used.isdisjoint(colour for colour in COLOURS if held_out("colour", "apple", colour))
    assert entry_prompt(silhouette, "blue") == "a blue lantern, noto style"


@pytest.mark.parametrize("words", [{"noun": "blue heart"}, {"tags": ("Brown", "man")}, {"also": ("the red one",)}])
def test_a_thing_that_names_its_colour_gets_no_other(words: dict[str, Any]) -> None:
    """A plain red sprite was "a red blue heart"."""
    entry = replace(LANTERN, colourable=True, **words)
    assert all(entry_facts(entry, rng, "white").groups[0].colour == "" for rng in rngs())


@pytest.mark.parametrize("style", [DEFAULT_STYLE, "twemoji"])
def test_a_scene_without_a_style_is_in_the_default_one(style: str) -> None:
    facts = Facts("single_object", style, (Group("cat"),))
    bare = {settle_style("a cat", facts, rng) for rng in rngs(50)}
    named = {settle_style(f"a cat, {style} style", facts, rng) for rng in rngs(50)}
    if style == DEFAULT_STYLE:
        assert bare == {"a cat"} and named == {"a cat", f"a cat, {style} style"}
    else:
        assert bare == named == {"a cat, twemoji style"}


def test_variations_keep_every_word_but_articles_and_order() -> None:
    caption = "a red apple, 3d style on a blue background"
    for rng in rngs():
        words = varied(caption, rng).replace(",", "").split()
        assert words.count("blue") + words.count("background") + words.count("style") >= 1
        assert len(set(words) & {"red", "apple", "blue", "background"}) >= 3
    forms = {varied(caption, rng) for rng in rngs()}
    assert "a red apple in 3d style on a blue background" in forms
    assert "a 3d red apple on a blue background" in forms
    assert "red apple, 3d style on blue background" in forms


def test_relations_are_never_turned_into_adjectives() -> None:
    caption = "a cat above a dog, 3d style"
    assert all(not varied(caption, rng).startswith("a 3d cat") for rng in rngs())


def test_a_slip_changes_one_long_word() -> None:
    for rng in rngs(50):
        slipped = misspelt("a red guitar", rng)
        assert slipped != "a red guitar" and slipped.startswith("a red g")
    assert misspelt("a cat", np.random.default_rng(0)) == "a cat"


def test_articles() -> None:
    assert [indefinite(noun) for noun in ("owl", "glasses", "cactus", "unicorn")] == [
        "an owl", "glasses", "a cactus", "a unicorn",
    ]  # fmt: skip
