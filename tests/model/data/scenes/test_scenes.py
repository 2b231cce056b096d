"""Composed scenes: captions are true by construction, (seed, index) identifies an image, held-out ones stay out."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.scenes.bank import build_bank
from model.data.scenes.compose import SIZE, arrange, relation_holds, render, scatter
from model.data.scenes.facts import CATEGORIES, Facts, Grammar, Group, unseen
from model.data.scenes.sprites import SIDE, Sprites, hsv, main_hue, recoloured
from model.data.scenes.things import COLOURS, COUNTS, RELATIONS, STYLES, THINGS
from model.data.scenes.wording import caption, prompt
from model.data.sources import DataError
from tests.model.image_set import THINGS_USED


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
    assert render(scene, sprites).shape == (SIZE, SIZE, 3)


def test_a_bank_is_a_function_of_its_seed_without_held_out_combinations(sprites: Sprites) -> None:
    a, b = (build_bank(sprites, THINGS_USED, STYLES, 300, 16, seed=3) for _ in range(2))
    assert a.captions == b.captions and a.facts == b.facts
    assert np.array_equal(a.images(range(8), visit=5), b.images(range(8), visit=5))
    assert not np.array_equal(a.images(range(8), visit=5), a.images(range(8), visit=6))
    assert not any(unseen(facts) for facts in a.facts)
    assert build_bank(sprites, THINGS_USED, STYLES, 300, 16, seed=4).captions != a.captions


def test_recolouring_gives_the_named_hue(sprites: Sprites) -> None:
    sprite = sprites.rgba[THINGS_USED[0], "flat"]
    for colour, (wanted, _, _) in COLOURS.items():
        hue = main_hue(recoloured(sprite, colour))
        if hue is None:  # pink is pale by design
            hue = float(hsv(recoloured(sprite, colour)[SIDE // 2, SIDE // 2, :3])[0])
        assert abs((hue - wanted + 180) % 360 - 180) < 12, colour


def test_sprites_survive_saving(sprites: Sprites, tmp_path: Path) -> None:
    sprites.save(tmp_path)
    again = Sprites.load(tmp_path)
    assert again.rgba.keys() == sprites.rgba.keys()
    assert all(np.array_equal(again.rgba[key], sprites.rgba[key]) for key in sprites.rgba)
    with pytest.raises(DataError, match="make data"):
        Sprites.load(tmp_path / "elsewhere")


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("snap", [1, 2, 4, 8, 16])
def test_several_things_leave_no_room_for_another(count: int, snap: int) -> None:
    """Three things often left room for a fourth, which a model drew there."""
    facts = Facts("counting", "flat", (Group(THINGS_USED[0], count),))
    for seed in range(10):
        placed = arrange(facts, np.random.default_rng(seed), snap).objects
        assert len(placed) == count
        side, places = placed[0].side, np.arange(0, SIZE - placed[0].side + 1, snap)
        x, y = np.meshgrid(places, places)
        taken = [(abs(x - thing.x) < side) & (abs(y - thing.y) < side) for thing in placed]
        assert np.logical_or.reduce(taken).all()


def test_a_snap_without_room_is_refused() -> None:
    facts = Facts("counting", "flat", (Group(THINGS_USED[0], 3),))
    with pytest.raises(DataError, match="3 things of 64 pixels found no room with snap 48; choose a smaller snap"):
        arrange(facts, np.random.default_rng(0), 48)


def test_four_things_scatter_at_any_snap() -> None:
    """Corners sampled independently almost never left room for four things at a snap of 4, and composing gave up."""
    facts = Facts("counting", "flat", (Group(THINGS_USED[0], 4),))
    for snap in (1, 2, 4, 8, 16):
        placed = scatter(facts, np.random.default_rng(snap), snap).objects
        assert len(placed) == 4
        assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= a.side for a, b in combinations(placed, 2))


def test_a_thing_alone_may_be_small() -> None:
    """One small thing has room beside it; that is what the caption says."""
    facts = Facts("single_object", "flat", (Group(THINGS_USED[0]),), size="small")
    places = {(arrange(facts, np.random.default_rng(n), 16).objects[0].x) for n in range(40)}
    assert len(places) > 3


def test_relations_point_the_right_way() -> None:
    """y grows downwards: above means the smaller y."""
    assert relation_holds("above", (64, 20), (64, 90), by=8) and not relation_holds("below", (64, 20), (64, 90), by=8)
    assert relation_holds("left", (20, 60), (90, 64), by=8) and not relation_holds("right", (20, 60), (90, 64), by=8)
    assert not relation_holds("left", (20, 0), (60, 100), by=8)  # farther above than left
