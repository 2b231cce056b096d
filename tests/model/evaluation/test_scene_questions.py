"""GenEval's questions about scenes: when an image is correct, and how scores are averaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.fixed_sample import holds_styles_out
from model.data.scenes.compose import SIZE, arrange, render
from model.data.scenes.facts import CATEGORIES, SCORED_CATEGORIES, Facts, Grammar, unseen
from model.data.scenes.sprites import Sprites
from model.data.sources import DataError
from model.evaluation.detector import Detection
from model.evaluation.scene_questions import (
    background,
    falsified,
    is_correct,
    is_in_style,
    questions,
    scores_by_category,
)


def detections_of(facts: Facts, seed: int, snap: int = 4) -> list[Detection]:
    """The detections of a perfect detector on a render of the facts."""
    scene = arrange(facts, np.random.default_rng(seed), snap)
    return [Detection(t.thing, t.colour or "red", scene.facts.style, t.centre) for t in scene.objects]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(CATEGORIES)), st.booleans())
def test_a_render_of_its_facts_is_correct(
    grammar: Grammar, sprites: Sprites, seed: int, category: str, held: bool
) -> None:
    facts = grammar.sample(np.random.default_rng(seed), category, want_unseen=held)
    image = render(arrange(facts, np.random.default_rng(seed), 4), sprites)
    if facts.size == "":  # a big thing covers the rim
        assert is_correct(facts, detections_of(facts, seed), image)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCORED_CATEGORIES))
def test_one_false_fact_makes_an_image_incorrect(grammar: Grammar, sprites: Sprites, seed: int, category: str) -> None:
    rng = np.random.default_rng(seed)
    facts = grammar.sample(rng, category)
    false = falsified(facts, grammar, rng)
    assert false != facts
    image = render(arrange(facts, rng, 4), sprites)
    assert not is_correct(facts, detections_of(false, seed), image)


def test_style_is_that_of_most_things(grammar: Grammar) -> None:
    facts = grammar.sample(np.random.default_rng(0), "counting")
    found = [Detection("star", "red", style, (64.0, 64.0)) for style in (facts.style, facts.style, "another")]
    assert is_in_style(facts, found) and not is_in_style(facts, found[1:]) and not is_in_style(facts, [])


def test_background_is_read_from_the_rim() -> None:
    page = np.full((SIZE, SIZE, 3), (190, 222, 250), np.uint8)
    page[30:90, 30:90] = 0
    assert background(page) == "blue"


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 0, 0), (120, 70, 30)])
def test_a_background_far_from_all_named_ones_has_no_name(colour: tuple[int, int, int]) -> None:
    """The nearest name used to be taken at any distance: black images were "green", red ones "yellow"."""
    assert background(np.full((SIZE, SIZE, 3), colour, np.uint8)) == ""


def test_a_question_unseen_by_style_alone_is_not_scored_as_unseen(grammar: Grammar) -> None:
    """Style is not scored, yet such questions once made up half of `score_unseen`, and all of it for single objects."""
    asked = questions(grammar, per_category=20)
    assert all(q.new_style_only for q in asked if q.unseen and q.facts.category == "single_object")
    correct = np.array([float(not q.new_style_only) for q in asked])
    scores = scores_by_category(asked, correct)
    assert scores["score_unseen"] == 1.0 and scores["single_object_unseen"] is None and scores["single_object"] == 0.5


def test_a_checkpoint_says_whether_it_was_trained_on_held_out_styles() -> None:
    """What weights before a carried change, before another carried change or in a mean had seen was once forgotten."""
    leg = {"steps": 5, "started_from": {"training": {"steps": 1}}}
    assert holds_styles_out({}) and holds_styles_out(leg) and holds_styles_out(leg | {"styles_held_out": True})
    shown = {"styles_held_out": False}
    assert not holds_styles_out(shown) and not holds_styles_out(leg | {"carried": shown})
    before = {"started_from": {"training": shown}}
    assert not holds_styles_out({"started_from": {"training": before}})
    assert not holds_styles_out(leg | {"carried": leg | before}) and not holds_styles_out(leg | {"mean_with": shown})
    assert not holds_styles_out(leg | {"carried": leg | {"styles_held_out": True, "carried": shown}})


def test_scores_are_means_of_categories(grammar: Grammar) -> None:
    asked = questions(grammar, per_category=4)
    assert len(asked) == 4 * len(SCORED_CATEGORIES) and all(unseen(q.facts) == q.unseen for q in asked)
    correct = np.array([1.0 if not q.unseen else 0.5 for q in asked])
    scores = scores_by_category(asked, correct)
    assert scores["score_seen"] == 1.0 and scores["score_unseen"] == 0.5 and scores["counting"] == 0.75
    asked_for = [scores[f"counting{cell}_questions"] for cell in ("", "_seen", "_unseen")]
    assert asked_for == [4, 2, sum(q.facts.category == "counting" and q.unseen and not q.new_style_only for q in asked)]
    assert len({q.prompt for q in asked}) > 20


def test_more_prompts_than_there_are_is_an_error(grammar: Grammar) -> None:
    """The search for another prompt never ended."""
    with pytest.raises(DataError, match=r"100000 prompts in each category: these things make at most \d+ prompts"):
        questions(grammar, per_category=100_000)
