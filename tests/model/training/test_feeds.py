"""Feeds of training batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from model.config import TokenizerConfig
from model.data.atlas.assemble import assemble
from model.data.atlas.atlas_bank import build_atlas_bank
from model.data.atlas.collect import Picture
from model.data.scenes.bank import build_bank
from model.data.scenes.sprites import SIDE
from model.data.scenes.things import STYLES, THINGS
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import PcaSkipTokenizer
from model.presets import PRESETS
from model.training.caption_cache import build_caption_cache
from model.training.feeds import SceneBatches, SceneFeed, epoch_order, mixed_order
from tests.model.image_set import discs


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
    image, caption = feed.example(len(bank) - 1)
    assert image.shape == (128, 128, 3) and "hook" in caption
