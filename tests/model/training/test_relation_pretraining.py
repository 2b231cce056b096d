"""The lesson before the first picture: which thing stands where, from the caption alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from model.config import TextConfig
from model.data.scenes.facts import Facts, Group
from model.data.scenes.things import RELATIONS, THINGS
from model.networks.text_encoder import HashEncoder
from model.networks.transformer import Aligner
from model.presets import PRESETS
from model.training.caption_cache import TextBank
from model.training.layout_loss import THING_CLASSES
from model.training.relation_pretraining import SIDES, read, right_answers

WORDS = tuple(name for name in THINGS if " " not in name)[:5]
CONFIG = replace(
    PRESETS["tiny"],
    width=64,
    heads=4,
    aligner_depth=1,
    text=TextConfig(kind="hash", name="words", dim=32, max_tokens=8),
)
STEPS = 400


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are only slowed down by more, on a busy machine fiftyfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bank_of(facts: list[Facts]) -> TextBank:
    encoder = HashEncoder(CONFIG.text)
    captions = [
        f"{f.groups[0].thing} {f.relation} {f.groups[1].thing}" if f.relation else f.groups[0].thing for f in facts
    ]
    states, mask = encoder.encode(captions)
    return TextBank(states[:, None].bfloat16(), mask[:, None], *encoder.encode([""]))


def every_pair() -> list[Facts]:
    return [
        Facts("position", "flat", (Group(a), Group(b)), relation=relation)
        for relation in RELATIONS for a in WORDS for b in WORDS if a != b
    ]  # fmt: skip


def test_answers_name_the_side_of_each_thing() -> None:
    [row] = right_answers([Facts("position", "flat", (Group("cat"), Group("dog")), relation="below")]).tolist()
    assert row == [0, 0, THING_CLASSES["dog"], THING_CLASSES["cat"]] and SIDES[2] == "above"


def test_who_stands_where_is_learned_and_holds_for_captions_not_seen() -> None:
    """Word order decides: "cat left dog" and "dog left cat" have the same words, so half is what words alone give."""
    facts = every_pair()
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(0)).tolist()
    facts = [facts[i] for i in order]
    torch.manual_seed(0)
    aligner = Aligner(CONFIG)
    aligner.pos.data.mul_(50)  # a hash encoder's states, unlike MiniLM's, say nothing of the place of a word
    before = {name: value.clone() for name, value in aligner.state_dict().items()}
    assert read(aligner, facts, bank_of(facts), steps=STEPS, seed=0, batch=64, progress=False) > 0.8
    assert any(not torch.equal(before[name], value) for name, value in aligner.state_dict().items())
    assert all(parameter.grad is None for parameter in aligner.parameters())


def test_the_lesson_is_a_function_of_its_seed() -> None:
    facts, taught = every_pair(), []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        aligner = Aligner(CONFIG)
        read(aligner, facts, bank_of(facts), steps=3, seed=seed, batch=8, progress=False)
        taught.append(aligner.proj.weight.detach())
    assert torch.equal(taught[0], taught[1]) and not torch.equal(taught[0], taught[2])


@pytest.mark.parametrize("facts", [[], [Facts("single_object", "flat", (Group("cat"),))]])
def test_captions_without_a_relation_teach_nothing(facts: list[Facts]) -> None:
    aligner = Aligner(CONFIG)
    before = aligner.proj.weight.clone()
    bank = bank_of(facts or [Facts("single_object", "flat", (Group("cat"),))])
    assert math.isnan(read(aligner, facts, bank, steps=5, seed=0, batch=8, progress=False))
    assert torch.equal(before, aligner.proj.weight)
