"""Scenes that are composed on the training device: the same pixels, classes and chances as on the CPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import TokenizerConfig
from model.data.atlas.assemble import assemble
from model.data.atlas.atlas_bank import AtlasBank, build_atlas_bank
from model.data.atlas.collect import Picture
from model.data.scenes.compose import Placed, Scene, arrange, render_with_alpha, side_of
from model.data.scenes.facts import Facts, Group
from model.data.scenes.things import STYLES, THINGS
from model.data.sources import DataError
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer
from model.presets import PRESETS
from model.process_group import Share
from model.training.auxiliary.layout_loss import cell_classes
from model.training.composer.composer import Composer, build_tables
from model.training.composer.feed import ComposedFeed
from model.training.composer.layouts import all_layouts
from model.training.feeds import WHOLE, SceneFeed
from tests.model.image_set import discs, drawing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bank() -> AtlasBank:
    things = tuple(THINGS)[:24]
    core = discs(things)
    core.about["sha256"] = "0"
    pictures = [Picture("anvil", style, drawing(n)) for n, style in enumerate(("3d", "noto"))]
    return build_atlas_bank(assemble(core, pictures), things, STYLES, 60, 16, seed=1)


@pytest.mark.parametrize(
    ("count", "relation", "side"),
    [(1, "", 96), (2, "", 64), (2, "left", 64), (2, "above", 64), (3, "", 64), (4, "", 48)],
)
def test_layouts_are_as_likely_as_those_that_are_arranged(count: int, relation: str, side: int) -> None:
    groups = (Group("cat"), Group("dog")) if relation else (Group("cat", count),)
    facts = Facts("two_objects", "noto", groups, relation=relation)
    assert side_of(facts) == side
    layouts = all_layouts(count, side, 16, relation)
    chances = {
        tuple(map(tuple, c)): chance for c, chance in zip(layouts.corners.tolist(), layouts.chances, strict=True)
    }
    assert len(chances) == len(layouts.chances) and sum(chances.values()) == pytest.approx(1)
    drawn = [arrange(facts, np.random.default_rng((3, n)), 16).objects for n in range(3000)]
    found = Counter(tuple((placed.x, placed.y) for placed in objects) for objects in drawn)
    assert set(found) <= set(chances)
    # The first thing's place sums over all layouts, so that its chances are large enough to compare.
    first, arranged = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for corners, chance in chances.items():
        first[corners[0]] += chance
    for corners, times in found.items():
        arranged[corners[0]] += times
    for place, chance in first.items():
        assert arranged[place] / 3000 == pytest.approx(chance, abs=4.5 * (chance / 3000) ** 0.5)


def test_a_snap_without_room_or_with_too_much_is_refused() -> None:
    """One was a traceback on a GPU alone; tables of the other filled the memory, and the message named the batch."""
    with pytest.raises(DataError, match="2 things of 64 pixels found no room with snap 48; choose a smaller snap"):
        all_layouts(2, 64, 48, "")
    with pytest.raises(DataError, match=r"have 9,375,000 layouts with snap 4, more than 2,000,000; choose a larger"):
        all_layouts(4, 48, 4, "")
    assert len(all_layouts(4, 48, 8, "").chances) == 24 * 3**8


def test_pixels_and_classes_are_those_of_the_cpu(bank: AtlasBank) -> None:
    """All the rows, singles and transparent ones among them, in layouts that the tables chose."""
    tables = build_tables(bank, 8)
    rows = torch.arange(len(bank))
    chances = torch.rand(len(bank), generator=torch.Generator().manual_seed(0), dtype=torch.double)
    images, cells = Composer(tables, CPU).compose(rows, chances)
    layout = torch.searchsorted(tables.edges, tables.kinds + chances, right=True)
    for row, facts in enumerate(bank.facts):
        side = side_of(facts)
        corners = (tables.corners[layout[row]] - side // 16).tolist()
        placed = (Placed(g.thing, g.colour, *at, side) for g, at in zip(facts.objects, corners, strict=False))
        scene = Scene(facts, tuple(placed))
        assert np.array_equal(images[row].numpy(), render_with_alpha(scene, bank.sprites))
        assert np.array_equal(cells[row].numpy(), cell_classes([scene], 8)[0])
    assert (images[..., 3] < 255).any(), "no row is transparent"


def test_the_highest_chance_is_a_layout_of_its_own_kind(bank: AtlasBank) -> None:
    """A chance of almost 1 rounded up to the next kind, whose layouts have other sizes and counts."""
    tables = build_tables(bank, 8)
    rows, highest = torch.arange(len(bank)), torch.full((len(bank),), 1 - 2**-53, dtype=torch.double)
    beyond = torch.searchsorted(tables.edges, tables.kinds + highest, right=True) > tables.lasts
    assert beyond.any(), "nothing is rounded up: the test proves nothing"
    _, cells = Composer(tables, CPU).compose(rows, highest)
    for row, facts in enumerate(bank.facts):
        covered = int((cells[row, :, 0] > 0).sum())
        assert covered == len(facts.objects) * (side_of(facts) // 16) ** 2


def feed_of(kind: type[SceneFeed], bank: AtlasBank, cache: Path, share: Share = WHOLE) -> SceneFeed:
    torch.manual_seed(0)
    tokenizer = PcaSkipTokenizer(TokenizerConfig(stride=16, channels=4, widths=(8, 8, 8), image_channels=4))
    encoder = HashEncoder(PRESETS["tiny"].text)
    if kind is ComposedFeed:
        return ComposedFeed(bank, tokenizer, encoder, cache, 8, 0, CPU, breadth=0.25, share=share)
    return SceneFeed(bank, tokenizer, encoder, cache, 8, 0, 0, CPU, breadth=0.25, share=share)


def test_a_batch_has_the_rows_of_the_other_feed_and_is_a_function_of_its_step(
    bank: AtlasBank, tmp_path: Path
) -> None:  # fmt: skip
    feed = feed_of(ComposedFeed, bank, tmp_path)
    rows, tokens, cells = feed.tokens(3)
    assert torch.equal(rows, feed_of(SceneFeed, bank, tmp_path).tokens(3)[0])
    feed.prepare(4)  # ahead, as the training loop does
    later = feed.tokens(4)[1]
    assert not torch.equal(later, tokens)
    again = feed_of(ComposedFeed, bank, tmp_path)
    assert torch.equal(again.tokens(4)[1], later) and torch.equal(again.tokens(3)[1], tokens)
    assert cells.shape == (8, 64, 2) and tokens.shape == (8, 64, 4)


def test_ranks_compose_their_parts_of_the_same_batch(bank: AtlasBank, tmp_path: Path) -> None:
    rows, tokens, cells = feed_of(ComposedFeed, bank, tmp_path).tokens(5)
    parts = [feed_of(ComposedFeed, bank, tmp_path, Share(rank, 3)).tokens(5) for rank in range(3)]
    assert all(torch.equal(part[0], rows) for part in parts)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), tokens)
    assert torch.equal(torch.cat([part[2] for part in parts]), cells)
