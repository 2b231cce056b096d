"""Composed scenes: captions are true by construction, pictures are named by (seed, index), held-outs stay out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.scenes.bank import build_bank
from model.data.scenes.compose import SIZE, arrange, relation_holds, render
from model.data.scenes.facts import CATEGORIES, SCORED_CATEGORIES, Facts, Grammar, Group, unseen
from model.data.scenes.sprites import SIDE, Sprites, hsv, main_hue, recoloured
from model.data.scenes.things import COLOURS, COUNTS, RELATIONS, STYLES, THINGS
from model.data.scenes.wording import caption, prompt
from model.data.sources import DataError
from model.evaluation.detector import CheckerError, Found, load_checker
from model.evaluation.evaluate_scenes import feature_distance
from model.evaluation.scene_questions import Question, background, by_category, falsified, questions, shows
from model.evaluation.train_detector import train
from model.training.trainer import load_state
from tests.model.picture_set import discs

THINGS_USED = tuple(THINGS)[:24]


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return discs(THINGS_USED)


@pytest.fixture(scope="module")
def grammar(sprites: Sprites) -> Grammar:
    return Grammar(sprites, THINGS_USED, STYLES)


def detected(facts: Facts, seed: int, snap: int = 4) -> list[Found]:
    """What a perfect detector would say of a render of the facts."""
    scene = arrange(facts, np.random.default_rng(seed), snap)
    return [Found(t.thing, t.colour or "red", t.centre) for t in scene.objects]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(CATEGORIES)), st.booleans())
def test_a_scene_shows_what_its_caption_states(grammar: Grammar, sprites: Sprites, seed: int, category: str,
                                               held: bool) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    facts = grammar.sample(rng, category, want_unseen=held)
    assert unseen(facts) == held and Facts.from_json(facts.to_json()) == facts
    for words in (prompt(facts), caption(facts, rng)):
        for group in facts.groups:
            names = (THINGS[group.thing].call(group.count), *THINGS[group.thing].synonyms)
            assert any(name in words for name in names) and group.colour in words
            if group.count > 1:
                assert COUNTS[group.count] in words or str(group.count) in words
        if facts.relation:
            assert any(wording in words for wording in RELATIONS[facts.relation])
        if facts.background != "white":
            assert f"{facts.background} background" in words
    scene = arrange(facts, rng, 4)
    boxes = [(t.x, t.y, t.side) for t in scene.objects]
    assert len(boxes) == len(facts.objects) and all(0 <= x <= SIZE - s and 0 <= y <= SIZE - s for x, y, s in boxes)
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= a[2] for a in boxes for b in boxes if a is not b)
    picture = render(scene, sprites)
    assert picture.shape == (SIZE, SIZE, 3)
    if facts.size == "":  # a big thing covers the rim
        assert shows(facts, [Found(t.thing, t.colour or "red", t.centre) for t in scene.objects], picture)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SCORED_CATEGORIES))
def test_one_false_fact_is_enough_to_fail(grammar: Grammar, sprites: Sprites, seed: int, category: str) -> None:
    rng = np.random.default_rng(seed)
    facts = grammar.sample(rng, category)
    lie = falsified(facts, grammar, rng)
    assert lie != facts
    picture = render(arrange(facts, rng, 4), sprites)
    assert not shows(facts, detected(lie, seed), picture)


def test_a_bank_is_named_by_its_seed_and_holds_nothing_held_out(sprites: Sprites) -> None:
    a, b = (build_bank(sprites, THINGS_USED, STYLES, 300, 16, seed=3) for _ in range(2))
    assert a.captions == b.captions and a.facts == b.facts
    assert np.array_equal(a.images(range(8), visit=5), b.images(range(8), visit=5))
    assert not np.array_equal(a.images(range(8), visit=5), a.images(range(8), visit=6))
    assert not any(unseen(facts) for facts in a.facts)
    assert build_bank(sprites, THINGS_USED, STYLES, 300, 16, seed=4).captions != a.captions


def test_the_judge_learns_resumes_and_comes_back_from_disk(sprites: Sprites, tmp_path: Path) -> None:
    things = THINGS_USED[:4]
    train(sprites, things, tmp_path, minutes=0, steps=2, batch=2, seed=0, progress=False)
    train(sprites, things, tmp_path, minutes=0, steps=3, batch=2, seed=0, progress=False)
    state = load_state(tmp_path / "state.pt")
    assert state is not None and state["step"] == 3
    checker = load_checker(tmp_path)
    assert checker.things == things and len(checker.find(torch.zeros(2, 3, SIZE, SIZE))) == 2
    with pytest.raises(CheckerError, match="train_checker"):
        load_checker(tmp_path / "elsewhere")


def test_recolouring_gives_the_named_hue(sprites: Sprites) -> None:
    sprite = sprites.rgba[THINGS_USED[0], "flat"]
    for colour, (wanted, _, _) in COLOURS.items():
        hue = main_hue(recoloured(sprite, colour))
        if hue is None:  # pink is pale by intent
            hue = float(hsv(recoloured(sprite, colour)[SIDE // 2, SIDE // 2, :3])[0])
        assert abs((hue - wanted + 180) % 360 - 180) < 12, colour


def test_sprites_survive_packing(sprites: Sprites, tmp_path: Path) -> None:
    sprites.save(tmp_path)
    again = Sprites.load(tmp_path)
    assert again.rgba.keys() == sprites.rgba.keys()
    assert all(np.array_equal(again.rgba[key], sprites.rgba[key]) for key in sprites.rgba)
    with pytest.raises(DataError, match="make data"):
        Sprites.load(tmp_path / "elsewhere")


def test_four_things_find_room_at_any_snap() -> None:
    """Corners drawn independently almost never left room for four things at a snap of 4, and composing gave up."""
    facts = Facts("counting", "flat", (Group(THINGS_USED[0], 4),))
    for snap in (1, 2, 4, 8, 16):
        assert len(arrange(facts, np.random.default_rng(snap), snap).objects) == 4


def test_relations_point_the_right_way() -> None:
    """y grows downwards: above means the smaller y."""
    assert relation_holds("above", (64, 20), (64, 90), by=8) and not relation_holds("below", (64, 20), (64, 90), by=8)
    assert relation_holds("left", (20, 60), (90, 64), by=8) and not relation_holds("right", (20, 60), (90, 64), by=8)
    assert not relation_holds("left", (20, 0), (60, 100), by=8)  # further down than left


def test_background_is_read_from_the_rim() -> None:
    page = np.full((SIZE, SIZE, 3), (190, 222, 250), np.uint8)
    page[30:90, 30:90] = 0
    assert background(page) == "blue"


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 0, 0), (120, 70, 30)])
def test_a_background_that_nobody_named_is_none_of_the_named(colour: tuple[int, int, int]) -> None:
    """The nearest name was taken however far it was: black pictures were "green", red ones "yellow"."""
    assert background(np.full((SIZE, SIZE, 3), colour, np.uint8)) == ""


def test_a_combination_with_a_style_alone_is_not_scored_as_unseen(grammar: Grammar) -> None:
    """Style is not judged, yet half of `score_unseen`, and all of it for single objects, came from such questions."""
    asked = questions(grammar, per_category=20)
    assert all(q.new_style_only for q in asked if q.unseen and q.facts.category == "single_object")
    right = np.array([float(not q.new_style_only) for q in asked])
    scores = by_category(asked, right)
    assert scores["score_unseen"] == 1.0 and scores["single_object_unseen"] is None and scores["single_object"] == 0.5


def test_the_feature_distance_of_like_sets_is_nothing() -> None:
    """Both sets are drawn from the same prompts; taking like pairs for independent ones made the floor -14."""
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randn(400, 32, generator=rng)
    a, b = (torch.nn.functional.normalize(prompts + 0.3 * torch.randn(400, 32, generator=rng)) for _ in range(2))
    other = torch.nn.functional.normalize(torch.randn(400, 32, generator=rng) + 1)
    assert abs(feature_distance(a, b)) < 2 and feature_distance(a, other) > 50


def test_scores_are_means_of_categories(grammar: Grammar) -> None:
    asked = questions(grammar, per_category=4)
    assert len(asked) == 4 * len(SCORED_CATEGORIES) and all(unseen(q.facts) == q.unseen for q in asked)
    right = np.array([1.0 if not q.unseen else 0.5 for q in asked])
    scores = by_category(asked, right)
    assert scores["score_seen"] == 1.0 and scores["score_unseen"] == 0.5 and scores["counting"] == 0.75
    assert len({q.prompt for q in asked if isinstance(q, Question)}) > 20


def test_the_suite_runs_from_its_command_to_its_last_line(sprites: Sprites, tmp_path: Path) -> None:
    """Discs for sprites, a judge that has learned nothing, the shipped weights: the scores mean nothing, but each of
    them must be there, and within what it can be."""
    sprites.save(tmp_path / "data")
    train(sprites, THINGS_USED, tmp_path / "judge", minutes=0, steps=1, batch=2, seed=0, progress=False)
    command = [
        sys.executable, "-m", "model.evaluation", "--suite", "scenes", "--checkpoint", "scenes-128", "--prompts", "2",
        "--images", "1", "--num-inference-steps", "2", "--diffusion-steps", "2", "--rows", "12",
        "--data", str(tmp_path / "data"), "--checker", str(tmp_path / "judge"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    shares = ["score_seen", "score_unseen", "checker_ceiling", "checker_reject", "r_precision", *SCORED_CATEGORIES]
    assert all(0 <= report[name] <= 1 for name in shares)
    assert (report["images"], report["prompts"]) == (12, 12) and report["seconds_per_image"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"sheet.png", "failures.png", "report.json"}

    done = subprocess.run([*command, "--quality", "low,high"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    assert list(reports) == ["low", "high"] and all(r["images"] == 12 for r in reports.values())
    assert (tmp_path / "out" / "high" / "report.json").exists()
    refused = subprocess.run([*command, "--quality", "low,best"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "'best' is not low, medium or high" in refused.stderr
