"""Feeds of training batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from model.config import TokenizerConfig
from model.data.atlas.assemble import assemble
from model.data.atlas.atlas_bank import AtlasBank, build_atlas_bank
from model.data.atlas.collect import Picture
from model.data.atlas.known_words import breadth_vocabulary, keywords, other_names
from model.data.scenes.bank import build_bank
from model.data.scenes.sprites import SIDE
from model.data.scenes.things import STYLES, THINGS
from model.data.sources import DataError
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer
from model.presets import PRESETS
from model.training.captions.caption_cache import build_caption_cache
from model.training.captions.keyword_hints import keyword_hints
from model.training.feeds import (
    SceneBatches,
    SceneFeed,
    epoch_order,
    mixed_order,
    open_scenes,
)
from model.training.outputs import exposure
from model.training.recipe import Recipe
from tests.model.image_set import discs, drawing


def test_loader_processes_compose_the_same_scenes_as_the_trainer() -> None:
    """A cached method used to be pickled without its object, so that other processes could not compose scenes."""
    things = tuple(THINGS)[:24]
    batches = SceneBatches(build_bank(discs(things), things, STYLES, 40, 16, seed=1), batch=4, seed=2, grid=8)
    loader = DataLoader(batches, sampler=range(6), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    for step, composed in enumerate(loader):
        assert all(torch.equal(one, other) for one, other in zip(composed, batches[step], strict=True))


def test_every_image_is_used_once_per_epoch() -> None:
    seen = torch.cat([epoch_order(40, 8, step, seed=0) for step in range(5)])
    assert sorted(seen.tolist()) == list(range(40))
    assert not torch.equal(seen, torch.cat([epoch_order(40, 8, step, seed=0) for step in range(5, 10)]))


def test_a_mixed_batch_has_its_share_of_single_things_and_each_kind_its_own_epochs() -> None:
    batches = [mixed_order(24, 24 + 12, 0.25, 8, step, seed=0) for step in range(12)]
    assert all(int((rows >= 24).sum()) == 2 and len(rows) == 8 for rows in batches)
    assert sorted(torch.cat(batches[:4])[torch.cat(batches[:4]) < 24].tolist()) == list(range(24))
    singles = torch.cat(batches[:6])
    assert sorted(singles[singles >= 24].tolist()) == list(range(24, 36))


def test_captions_of_like_length_are_encoded_together_and_come_back_in_place(tmp_path: Path) -> None:
    encoder = HashEncoder(PRESETS["tiny"].text)
    captions = ["a cat", "a very long caption of a cat", "dog", "a red dog"]
    cache = build_caption_cache(encoder, [(caption,) for caption in captions], tmp_path)
    for row, caption in enumerate(captions):
        states, mask = encoder.encode([caption])
        count = int(mask.sum())
        assert int(cache.mask[row, 0].sum()) == count
        assert torch.equal(cache.states[row, 0, :count], states[0, :count].bfloat16())


def test_a_feed_of_the_atlas_encodes_alpha_and_names_its_words(tmp_path: Path) -> None:
    things = tuple(THINGS)[:24]
    core = discs(things)
    core.about["sha256"] = "0"
    rng = np.random.default_rng(0)
    sprites = [rng.integers(0, 255, (SIDE, SIDE, 4), np.uint8) for _ in range(4)]
    pictures = [Picture("anvil", style, sprites[n]) for n, style in enumerate(("3d", "noto"))]
    pictures += [Picture("vase", "clipart", sprites[2]), Picture("hook", "silhouette", sprites[3], one_colour=True)]
    atlas = assemble(core, pictures)
    bank = build_atlas_bank(atlas, things, STYLES, 30, 16, seed=1)
    tokenizer = PcaSkipTokenizer(TokenizerConfig(stride=16, channels=4, widths=(8, 8, 8), image_channels=4))
    encoder = HashEncoder(PRESETS["tiny"].text)
    feed = SceneFeed(bank, tokenizer, encoder, tmp_path, 8, 0, 0, torch.device("cpu"), breadth=0.25)
    rows, tokens, cells = feed.tokens(3)
    assert int((rows >= 30).sum()) == 2 and tokens.shape == (8, 64, 4) and cells.shape == (8, 64, 2)
    assert feed.about["breadth"] == ["anvil"] and feed.about["breadth_in_one_style"] == ["hook", "vase"]
    assert {"3d", "clipart", "silhouette"} <= set(feed.about["styles"])
    assert feed.about["synonyms"] == other_names(feed.about["vocabulary"])
    assert {"kitty", "mice"} <= set(other_names(("cat", "mouse"))) and "cat" not in other_names(("cat",))
    # Both kinds were counted as one number of rows and of epochs, although each has epochs of its own.
    assert exposure(feed, 8, 15) == {"pictures": 30, "epochs": 3.0, "singles": len(bank) - 30, "singles_epochs": 3.8}
    image, caption = feed.example(len(bank) - 1)
    assert image.shape == (128, 128, 3) and "hook" in caption


def test_a_breadth_in_chosen_styles_has_the_things_that_two_of_them_draw() -> None:
    """All 16,000 pictures got five epochs in an hour and a half, and none was learned."""
    things = tuple(THINGS)[:24]
    core = discs(things)
    core.about["sha256"] = "0"
    drawn = [("anvil", "3d"), ("anvil", "noto"), ("anvil", "clipart"), ("vase", "noto"), ("vase", "clipart"),
             ("hook", "noto"), ("hook", "3d")]  # fmt: skip
    atlas = assemble(core, [Picture(noun, style, drawing(n)) for n, (noun, style) in enumerate(drawn)])
    bank = build_atlas_bank(atlas, things, STYLES, 5, 16, seed=1, breadth_styles=("noto", "3d"))
    assert [(e.noun, e.style, e.default, e.styles) for e in bank.entries] == [
        ("anvil", "3d", False, 2), ("anvil", "noto", True, 2), ("hook", "noto", True, 2), ("hook", "3d", False, 2),
    ]  # fmt: skip
    assert {facts.groups[0].thing for facts in bank.facts[5:]} == {"anvil #1", "hook #1"}
    assert breadth_vocabulary(bank) == {
        "breadth": ["anvil", "hook"], "breadth_in_one_style": [], "breadth_styles": ["noto", "3d"],
    }  # fmt: skip


def test_the_breadth_leaves_the_things_of_scenes_to_the_scenes() -> None:
    """It filled the image with them under the same captions, and single things of the core fell to 74 % correct."""
    things = ("cat", "mushroom")
    core = discs(things)
    core.about["sha256"] = "0"
    nouns = ("cat", "cat face", "kitty", "toadstool", "anvil")
    atlas = assemble(core, [Picture(noun, "noto", drawing(n)) for n, noun in enumerate(nouns)])
    bank = build_atlas_bank(atlas, things, STYLES, 5, 16, seed=1)
    assert {facts.groups[0].thing for facts in bank.facts[5:]} == {"anvil #1"}
    assert breadth_vocabulary(bank) == {"breadth": [], "breadth_in_one_style": ["anvil"]}


def test_keywords_are_of_all_things_that_an_atlas_trains_alone() -> None:
    """Only the first two of an emoji's keywords were kept, and only if they meant one thing: "coffee" was unknown, and
    nearest to it was "coffin"."""
    core = discs(things := ("cat", "mushroom"))
    core.about["sha256"] = "0"
    files = {"teapot": ("drink", "coffee"), "vase": ("drink", "teapot"), "hook": ("100", "Coffee"), "cat": ("pet",)}
    drawn = [(noun, style, words) for noun, words in files.items() for style in ("noto", "3d")]
    pictures = [Picture(noun, style, drawing(n), keywords=words) for n, (noun, style, words) in enumerate(drawn)]
    atlas = assemble(core, [*pictures, Picture("anvil", "noto", drawing(9), keywords=("one style",))])
    assert keywords(build_atlas_bank(atlas, things, STYLES, 5, 16, seed=1)) == {
        "coffee": ["hook", "teapot"], "drink": ["teapot", "vase"],
    }  # fmt: skip


def test_hints_are_the_nearest_names_in_meaning() -> None:
    """ "cup" hinted at "plunger", whose keyword it is."""
    encoder = HashEncoder(PRESETS["tiny"].text)
    of = {"cup": ["a plunger", "cup of tea", "cup", "tea cup"], "zz zzz zzzz": ["a sleeping face with a long nose"]}
    assert keyword_hints(of, encoder) == {"cup": ["cup", "tea cup", "cup of tea"]}
    assert keyword_hints({}, encoder) == {}


def test_an_atlas_without_breadth_trains_scenes_with_alpha(tmp_path: Path) -> None:
    """A leg with `breadth = 0` was trained on opaque images and plain captions alone: the scenes' own bank."""
    core = discs(tuple(THINGS)[:24])
    core.about["sha256"] = "0"
    assemble(core, [Picture("anvil", "noto", drawing(1))]).save(tmp_path)
    recipe = Recipe.load(Path("model/recipes/atlas-128.toml"), data=str(tmp_path))
    assert recipe.scenes is not None
    bank = open_scenes(recipe, replace(recipe.scenes, things=24, styles=STYLES, captions=200, breadth=0.0))
    assert isinstance(bank, AtlasBank) and bank.scenes == len(bank) == 200 and bank.entries == ()
    assert bank.images([0], visit=1).shape == (1, 128, 128, 4)
    assert any(facts.background == "transparent" for facts in bank.facts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"styles": ("3d", "notto")}, r"styles: .* has no style 'notto'; it has 3d, noto, twemoji, flat, blob, emoj"),
        ({"breadth_styles": ("noto", "3dd")}, r"breadth_styles: .* has no style '3dd'; it has clipart, noto"),
        ({"portraits": 0.1}, "portraits = 0.1: an atlas shows portraits with its single things alone; set portraits"),
        ({"tags": 0.1}, "tags = 0.1: an atlas shows tags with its single things alone; set tags = 0"),
    ],
)
def test_wishes_that_an_atlas_cannot_fulfil_are_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:  # fmt: skip
    """Portraits and tags did nothing, and a misspelt style left the others to take its share of the captions."""
    core = discs(tuple(THINGS)[:24])
    core.about["sha256"] = "0"
    assemble(core, [Picture("anvil", style, drawing(n)) for n, style in enumerate(("clipart", "noto"))]).save(tmp_path)
    recipe = Recipe.load(Path("model/recipes/atlas-128.toml"), data=str(tmp_path))
    assert recipe.scenes is not None
    fitting = replace(recipe.scenes, things=24, captions=20, breadth_styles=("clipart", "noto"))
    assert len(open_scenes(recipe, fitting)) > 20
    with pytest.raises(DataError, match=message):
        open_scenes(recipe, replace(fitting, **values))


@pytest.mark.parametrize("key", ["portraits", "tags"])
def test_sprites_without_portraits_or_tags_say_where_there_are(key: str, tmp_path: Path) -> None:
    """`tags` on data/scenes was without effect."""
    discs(tuple(THINGS)[:24]).save(tmp_path)
    recipe = Recipe.load(Path("model/recipes/scenes-128.toml"), data=str(tmp_path))
    assert recipe.scenes is not None
    with pytest.raises(DataError, match=rf"{key} = 0\.1: .* has no {key}; set {key} = 0, or train on data/scenes-more"):
        open_scenes(recipe, replace(recipe.scenes, things=24, captions=20, **{key: 0.1}))


def test_styles_that_share_no_thing_are_refused() -> None:
    """Such styles left the breadth empty: batches shrank from 64 to 46 images, and nothing was said."""
    things = tuple(THINGS)[:24]
    core = discs(things)
    core.about["sha256"] = "0"
    atlas = assemble(core, [Picture("anvil", style, drawing(n)) for n, style in enumerate(("3d", "noto"))])
    with pytest.raises(DataError, match="breadth_styles twemogi, noto: no two of them draw one thing; the atlas has"):
        build_atlas_bank(atlas, things, STYLES, 5, 16, seed=1, breadth_styles=("twemogi", "noto"))
