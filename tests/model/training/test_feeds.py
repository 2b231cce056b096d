"""Feeds of training batches."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from model.data.scenes.bank import build_bank
from model.data.scenes.things import STYLES, THINGS
from model.networks.text_encoder import HashEncoder
from model.presets import PRESETS
from model.training.caption_cache import build_caption_cache
from model.training.feeds import SceneBatches, epoch_order, mixed_order
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
