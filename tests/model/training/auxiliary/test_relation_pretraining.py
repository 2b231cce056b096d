"""Relation pretraining: the aligner learns from captions alone which thing is on which side."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import TextConfig
from model.data.scenes.facts import Facts, Group
from model.data.scenes.things import RELATIONS, THINGS
from model.networks.text_encoder import HashEncoder
from model.networks.transformer import Aligner
from model.presets import PRESETS
from model.training.auxiliary.layout_loss import THING_CLASSES
from model.training.auxiliary.relation_pretraining import (
    SIDES,
    pretrain_aligner,
    pretrain_or_read,
    relation_targets,
)
from model.training.captions.caption_cache import CaptionCache

WORDS = tuple(name for name in THINGS if " " not in name)[:5]
CONFIG = replace(
    PRESETS["tiny"],
    width=64,
    heads=4,
    aligner_depth=1,
    text=TextConfig(kind="hash", name="words", dim=32, max_tokens=8),
)
STEPS = 400


def captions_of(facts: list[Facts]) -> CaptionCache:
    encoder = HashEncoder(CONFIG.text)
    wordings = [
        f"{f.groups[0].thing} {f.relation} {f.groups[1].thing}" if f.relation else f.groups[0].thing for f in facts
    ]
    states, mask = encoder.encode(wordings)
    return CaptionCache(states[:, None].bfloat16(), mask[:, None], *encoder.encode([""]))


def every_pair() -> list[Facts]:
    return [
        Facts("position", "flat", (Group(a), Group(b)), relation=relation)
        for relation in RELATIONS for a in WORDS for b in WORDS if a != b
    ]  # fmt: skip


def test_targets_name_the_thing_on_each_side() -> None:
    [row] = relation_targets([Facts("position", "flat", (Group("cat"), Group("dog")), relation="below")]).tolist()
    assert row == [0, 0, THING_CLASSES["dog"], THING_CLASSES["cat"]] and SIDES[2] == "above"


@pytest.mark.slow
def test_pretraining_generalises_to_held_back_captions() -> None:
    """Word order decides: "cat left dog" and "dog left cat" have the same words, so without it accuracy is one half."""
    facts = every_pair()
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(0)).tolist()
    facts = [facts[i] for i in order]
    torch.manual_seed(0)
    aligner = Aligner(CONFIG)
    aligner.pos.data.mul_(50)  # a hash encoder's states, unlike MiniLM's, say nothing about a word's position
    before = {name: value.clone() for name, value in aligner.state_dict().items()}
    assert pretrain_aligner(aligner, facts, captions_of(facts), steps=STEPS, seed=0, batch=64, progress=False) > 0.8
    assert any(not torch.equal(before[name], value) for name, value in aligner.state_dict().items())
    assert all(parameter.grad is None for parameter in aligner.parameters())


def test_pretraining_is_a_function_of_its_seed() -> None:
    facts, weights = every_pair(), []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        aligner = Aligner(CONFIG)
        pretrain_aligner(aligner, facts, captions_of(facts), steps=3, seed=seed, batch=8, progress=False)
        weights.append(aligner.proj.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("facts", [[], [Facts("single_object", "flat", (Group("cat"),))]])
def test_captions_without_a_relation_leave_the_aligner_unchanged(facts: list[Facts]) -> None:
    aligner = Aligner(CONFIG)
    before = aligner.proj.weight.clone()
    captions = captions_of(facts or [Facts("single_object", "flat", (Group("cat"),))])
    assert math.isnan(pretrain_aligner(aligner, facts, captions, steps=5, seed=0, batch=8, progress=False))
    assert torch.equal(before, aligner.proj.weight)


def test_an_aligner_of_another_pretraining_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that a killed run had left was taken whatever steps, seed and captions were asked for."""
    facts, file, weights = every_pair(), tmp_path / "aligner.pt", []
    for steps, seed in ((3, 0), (3, 0), (4, 0), (4, 1)):
        torch.manual_seed(7)
        aligner = Aligner(CONFIG)
        pretrain_or_read(aligner, facts, captions_of(facts), file, steps, seed)
        weights.append(aligner.proj.weight.detach().clone())
        assert ("relation pretraining" in capsys.readouterr().out) == (len(weights) != 2)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])
