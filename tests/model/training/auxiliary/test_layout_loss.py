"""The auxiliary layout loss: classes of what covers each token, and that a linear layer can predict them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.scenes.compose import SIZE, Placed, Scene
from model.data.scenes.facts import SINGLE, Facts, Group
from model.data.scenes.things import COLOURS, THINGS
from model.training.auxiliary.layout_loss import COLOUR_NAMES, PORTRAIT_CLASS, THING_CLASSES, LayoutHead, cell_classes

GRID = 8
APPLE_LEFT = Scene(
    Facts("position", "flat", (Group("apple", colour="blue"), Group("cat")), relation="left"),
    (Placed("apple", "blue", 0, 32, 64), Placed("cat", "", 64, 48, 64)),
)


def test_each_cell_has_the_classes_of_the_thing_that_covers_it() -> None:
    cells = cell_classes([APPLE_LEFT], GRID).reshape(GRID, GRID, 2)
    assert (cells[2:6, 0:4] == [THING_CLASSES["apple"], COLOUR_NAMES.index("blue")]).all()
    assert (cells[3:7, 4:8] == [THING_CLASSES["cat"], 0]).all()
    assert (cells[..., 0] > 0).sum() == 32 and (cells[..., 1] > 0).sum() == 16


@pytest.mark.parametrize("x", [0, 4, 7])
def test_a_thing_off_the_grid_covers_the_cells_whose_centres_it_contains(x: int) -> None:
    scene = Scene(APPLE_LEFT.facts, (Placed("apple", "blue", x, 0, 64),))
    assert (cell_classes([scene], GRID)[0, :, 0] > 0).sum() == 16


def test_every_thing_and_colour_has_a_class_of_its_own_and_portraits_share_one() -> None:
    assert sorted(THING_CLASSES.values()) == list(range(len(THINGS) + 1)) and len(THINGS) + 1 == PORTRAIT_CLASS
    assert COLOUR_NAMES[1:] == tuple(COLOURS)
    portrait = Scene(Facts("portrait", "lorelei", (Group("a woman"),)), (Placed("a woman", "", 0, 0, SIZE),))
    assert (cell_classes([portrait], GRID) == [PORTRAIT_CLASS, 0]).all()


def test_the_loss_can_be_fitted_when_z_identifies_the_token() -> None:
    """A different z for each token is enough to say what covers it."""
    torch.manual_seed(0)
    cells = torch.from_numpy(cell_classes([APPLE_LEFT], GRID)[0])
    z, head = torch.randn(GRID * GRID, 96), LayoutHead(96)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
    began = head.loss(z, cells).item()
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(z, cells).backward()
        optimizer.step()
    assert began > np.log(len(THINGS)) and head.loss(z, cells).item() < 0.1
    assert torch.equal(head.thing(z).argmax(-1), cells[:, 0])


def test_single_things_of_an_atlas_have_the_classes_of_scenes() -> None:
    """An apple is an apple wherever it is drawn; black is no colour that a thing of scenes has."""
    apple = Scene(Facts(SINGLE, "noto", (Group("apple #2"),)), (Placed("apple #2", "black", 0, 0, 128),))
    anvil = Scene(Facts(SINGLE, "noto", (Group("anvil #1"),)), (Placed("anvil #1", "red", 0, 0, 128),))
    cells = cell_classes([apple, anvil], grid=8)
    assert (cells[0, :, 0] == THING_CLASSES["apple"]).all() and (cells[0, :, 1] == 0).all()
    assert (cells[1, :, 0] == PORTRAIT_CLASS).all() and (cells[1, :, 1] == COLOUR_NAMES.index("red")).all()
