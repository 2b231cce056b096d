"""Sampling of discrete tokens: the distribution, its filters, and the choice by confidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.inference.heads.categorical import (
    NOISE_AT_ONCE,
    CategoricalRows,
    _filter,
    choose_confident,
    sample_categories,
)
from model.inference.step_plan import NO_TOP_K

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])
MANY = 20000


def rows(count: int, **change: object) -> CategoricalRows:
    """Tokens of one image without guidance."""
    ones, whole = torch.ones(count), torch.ones(count, dtype=torch.int64)
    base = CategoricalRows(
        z=torch.zeros(count, 1), guided=whole[:0], guidance=ones, temperature=ones, top_k=4 * whole, top_p=ones,
        seed=7 * whole, position=torch.arange(count), step=0 * whole, filtered=False,
    )  # fmt: skip
    return replace(base, **change)  # type: ignore[arg-type]


def shares(tokens: Tensor) -> Tensor:
    """(4,) how often each value was sampled."""
    return tokens.bincount(minlength=4) / len(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    tokens, logp = sample_categories(LOGITS.expand(MANY, -1), rows(MANY, temperature=torch.full((MANY,), temperature)))
    assert (shares(tokens) - (LOGITS / temperature).softmax(0)).abs().max() < 0.015
    torch.testing.assert_close(logp, LOGITS.log_softmax(0)[tokens])


def test_temperature_zero_is_the_likeliest_token() -> None:
    tokens, _ = sample_categories(LOGITS.expand(100, -1), rows(100, temperature=torch.zeros(100)))
    assert (tokens == 0).all()


def test_top_k_and_top_p_cut_the_tail() -> None:
    """Probabilities 0.64, 0.24, 0.09, 0.03: the first 0.7 of it needs two tokens, the first 0.6 one."""
    for change, left in (
        ({"top_k": torch.full((MANY,), 2)}, 2), ({"top_p": torch.full((MANY,), 0.7)}, 2),
        ({"top_p": torch.full((MANY,), 0.6)}, 1), ({"top_k": torch.full((MANY,), 3)}, 3),
    ):  # fmt: skip
        tokens, _ = sample_categories(LOGITS.expand(MANY, -1), rows(MANY, filtered=True, **change))
        assert (shares(tokens)[:left] - LOGITS[:left].softmax(0)).abs().max() < 0.015
        assert tokens.max() == left - 1


def test_filters_that_keep_all_change_nothing() -> None:
    plain, _ = sample_categories(LOGITS.expand(500, -1), rows(500))
    kept, _ = sample_categories(LOGITS.expand(500, -1), rows(500, filtered=True))
    assert torch.equal(plain, kept)


def test_a_row_without_filters_keeps_its_tail_beside_a_row_with_one() -> None:
    """A top_p of 1 cut the values behind those whose rounded probabilities sum to 1: company changed an image."""
    logits = 6 * torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    kept = _filter(logits, torch.full((2,), NO_TOP_K), torch.tensor([1.0, 0.5]), torch.ones(2))
    assert torch.equal(kept[0], logits[0]) and (kept[1] == -torch.inf).any()


def test_parts_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is computed for a few tokens at a time; also with filters and guidance."""
    some = torch.arange(500)
    logits = torch.randn(700, 4, generator=torch.Generator().manual_seed(0))
    ask = rows(500, filtered=True, top_k=some % 4 + 1, guided=some[:200], guidance=torch.full((500,), 3.0))
    whole = sample_categories(logits, ask)
    monkeypatch.setitem(NOISE_AT_ONCE, "cpu", 4 * 33)
    for found, wanted in zip(sample_categories(logits, ask), whole, strict=True):
        assert torch.equal(found, wanted)


def test_guidance_moves_away_from_the_unconditional_logits() -> None:
    """Guided tokens only; the scale of the others is not read."""
    logits = torch.cat([LOGITS.expand(3, -1), torch.tensor([[9.0, 0.0, 0.0, 0.0]])])
    mixed = rows(3, guided=torch.tensor([1]), guidance=torch.full((3,), 3.0), temperature=torch.zeros(3))
    tokens, logp = sample_categories(logits, mixed)
    moved = logits[3] + 3 * (LOGITS - logits[3])
    assert tokens.tolist() == [0, int(moved.argmax()), 0]
    assert logp[1] == pytest.approx(moved.log_softmax(0).max().item())


def test_noise_depends_on_seed_position_and_step_alone() -> None:
    logits = torch.zeros(64, 32)
    wide = rows(64, top_k=torch.full((64,), 32))
    tokens, _ = sample_categories(logits, wide)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    shuffled, _ = sample_categories(logits, replace(wide, position=order))
    assert torch.equal(shuffled, tokens[order])
    for change in ({"seed": wide.seed + (1 << 33)}, {"step": wide.step + 1}):
        other, _ = sample_categories(logits, replace(wide, **change))  # type: ignore[arg-type]
        assert (other == tokens).float().mean() < 0.3


def test_the_most_confident_undecided_tokens_are_chosen() -> None:
    confidence = torch.tensor([[-1.0, -0.1, -3.0, -0.2]] * 2)
    known = torch.tensor([[False, True, False, False], [False] * 4])
    seed, step, count = torch.tensor([1, 2]), torch.tensor([0, 3]), torch.tensor([2, 1])
    found = choose_confident(confidence, known, seed, step, torch.zeros(2), count)
    assert found.tolist() == [[True, False, False, True], [False, True, False, False]]
    noisy = choose_confident(confidence.repeat(400, 1), known.repeat(400, 1), torch.arange(800), step.repeat(400),
                             torch.full((800,), 4.5), count.repeat(400))  # fmt: skip
    assert (noisy.sum(1) == count.repeat(400)).all() and not noisy[::2, 1].any()
    assert noisy[1::2].float().mean(0).min() > 0.1  # with noise, any of them
