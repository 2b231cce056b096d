"""Feeds of training batches."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from model.data.scenes.bank import build_bank
from model.data.scenes.things import STYLES, THINGS
from model.training.feeds import SceneBatches, epoch_order
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
