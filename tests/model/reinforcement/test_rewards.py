"""What images are worth to a judge, and how much better than their like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.data.scenes.compose import Scene, arrange, render
from model.data.scenes.facts import Facts, Group
from model.data.scenes.sprites import Sprites
from model.data.scenes.things import COLOURS, STYLES
from model.evaluation.detector import STRIDE, Detector, Logits
from model.reinforcement.rewards import advantages, rewards
from tests.model.image_set import THINGS_USED

SURE = 12.0  # logit of what this judge sees


class Seer(Detector):
    """A judge that sees the scenes it was told of, each thing in its style with a probability of nearly 1."""

    def __init__(self, scenes: list[Scene]):
        super().__init__(THINGS_USED, STYLES)
        self.scenes = scenes

    def forward(self, pixels: Tensor) -> Logits:
        grid = pixels.shape[-1] // STRIDE
        centre = torch.full((len(pixels), grid, grid), -SURE)
        drawing = torch.zeros(len(pixels), len(self.things), len(self.styles), grid, grid)
        colour = torch.zeros(len(pixels), len(COLOURS), grid, grid)
        for row, scene in enumerate(self.scenes):
            for thing in scene.objects:
                x, y = (int(place / STRIDE) for place in thing.centre)
                centre[row, y, x] = SURE
                drawing[row, self.things.index(thing.thing), self.styles.index(scene.facts.style), y, x] = SURE
        return Logits(centre, drawing, colour)


def judged(asked: Facts, shown: Facts, sprites: Sprites, caption: str) -> tuple[float, bool]:
    """Reward of a render of `shown` for the caption of `asked`, and whether it is correct."""
    scene = arrange(shown, np.random.default_rng(3), 4)
    reward, correct = rewards(Seer([scene]), [asked], [caption], torch.from_numpy(render(scene, sprites))[None])
    return float(reward[0]), bool(correct[0])


def test_an_image_is_worth_what_is_right_of_it(sprites: Sprites) -> None:
    cat, dog = THINGS_USED[:2]
    three = Facts("counting", "flat", (Group(cat, 3),))
    caption = f"three {cat}s, flat style"
    assert judged(three, three, sprites, caption) == (pytest.approx(1, abs=0.01), True)
    four = judged(three, replace(three, groups=(Group(cat, 4),)), sprites, caption)
    two = judged(three, replace(three, groups=(Group(cat, 2),)), sprites, caption)
    other = judged(three, replace(three, groups=(Group(dog, 3),)), sprites, caption)
    assert four == (pytest.approx(0.5 * 3 / 4, abs=0.01), False), "one too many costs"
    assert two == (pytest.approx(0.5 * 2 / 3, abs=0.01), False) and other == (0, False)
    assert judged(three, replace(three, background="blue"), sprites, caption) == (pytest.approx(0.5, abs=0.01), False)


def test_a_style_counts_where_the_caption_names_it(sprites: Sprites) -> None:
    asked = Facts("single_object", "flat", (Group(THINGS_USED[0]),))
    noto = replace(asked, style="noto")
    assert judged(asked, noto, sprites, f"{THINGS_USED[0]}, flat style") == (pytest.approx(0.5, abs=0.01), True)
    assert judged(asked, noto, sprites, THINGS_USED[0]) == (pytest.approx(1, abs=0.01), True)


def test_a_transparent_background_is_judged_on_the_white_that_it_is_shown_on(sprites: Sprites) -> None:
    asked = Facts("single_object", "flat", (Group(THINGS_USED[0]),), background="transparent")
    assert judged(asked, replace(asked, background="white"), sprites, THINGS_USED[0])[1]


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.integers(0, 3))
def test_advantages_compare_images_of_one_prompt_only(values: list[float], row: int) -> None:
    """Nothing that all four images of a prompt share, such as being easy, is an advantage of any of them."""
    reward = torch.tensor(values)
    found = advantages(reward, 4)
    shifted = advantages(reward + torch.tensor([0.5] * 4 + [0.0] * 4), 4)
    torch.testing.assert_close(found, shifted, atol=1e-2, rtol=0)
    assert found.abs().max() <= 1
    best = reward[:4].max() == reward[row]
    assert not best or found[row] >= found[:4].max() - 1e-6
    assert torch.equal(advantages(torch.full((8,), 0.7), 4), torch.zeros(8))
