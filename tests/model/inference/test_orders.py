"""Schedules and orders: properties that hold for every size and seed."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.inference.orders import (
    annealed,
    guidance_at,
    halton_order,
    make_order,
    masked_after,
    random_order,
    tokens_per_step,
    training_masks,
)

SIZES = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n)))


@given(SIZES, st.sampled_from(["random", "gtr"]))
def test_every_step_decides_at_least_one_token_and_all_are_decided(sizes: tuple[int, int], order: str) -> None:
    steps, tokens = sizes
    counts = tokens_per_step(steps, tokens, order)
    assert len(counts) == steps and min(counts) >= 1 and sum(counts) == tokens


@given(SIZES)
def test_the_schedule_is_the_recursion_of_the_reference_code(sizes: tuple[int, int]) -> None:
    """The reference clamps each count by the previous one; ours is its closed form."""
    steps, tokens = sizes
    left = tokens
    for step in range(steps):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        left = 0 if step == steps - 1 else max(1, min(left - 1, wanted))
        assert masked_after(step, steps, tokens) == left


def test_the_schedule_of_64_steps_over_256_tokens() -> None:
    """64 steps over 256 tokens: one token each for the first 13 steps, 6 or 7 at the end (MAR)."""
    counts = tokens_per_step(64, 256)
    assert counts[:13] == [1] * 13 and set(counts[-5:]) <= {6, 7}


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), st.integers(1, 256))
@settings(max_examples=40)
def test_orders_are_permutations_that_depend_on_their_own_seed_only(seeds: list[int], tokens: int) -> None:
    orders = random_order(torch.tensor(seeds), tokens)
    for seed, order in zip(seeds, orders, strict=True):
        assert sorted(order.tolist()) == list(range(tokens))
        assert torch.equal(order, random_order(torch.tensor([seed]), tokens)[0])


def test_last_positions_of_orders_are_uniform() -> None:
    """Each position is last about equally often: chi-squared over 6400 seeds and 64 positions."""
    last = random_order(torch.arange(6400), 64)[:, -1].numpy()
    chi2 = ((np.bincount(last, minlength=64) - 100) ** 2 / 100).sum()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)


def test_guidance_schedules() -> None:
    assert guidance_at(3.0, "constant", 60, 64) == 3.0
    assert guidance_at(3.0, "linear", 64, 64) == 1.0
    assert guidance_at(3.0, "linear", 1, 64) == guidance_at(3.0, "linear", 0, 64) == 3.0 - 2 / 64


def test_training_mask_ratios_follow_the_cosine() -> None:
    """The mean of cos(pi/2 u) is 2/pi; every row has a masked token."""
    masks = torch.cat([training_masks(64, 64, torch.Generator().manual_seed(i)) for i in range(40)])
    assert abs(masks.float().mean().item() - 2 / math.pi) < 0.02
    assert masks.any(1).all()
    few = (masks.float().mean(1) < 0.5).float().mean().item()  # P(cos(pi/2 u) < 1/2) = 1/3
    assert abs(few - 1 / 3) < 0.03


@pytest.mark.parametrize(("kind", "different"), [("halton", 2 * 64), ("gtr", 2 * 2 * 64)])
def test_masks_in_an_order_hide_what_it_decides_last(kind: str, different: int) -> None:
    """Decoding in that order never shows a model other sets of tokens; the mask ratios stay those of all masks."""
    rng = torch.Generator().manual_seed(3)
    masks = torch.cat([training_masks(64, 64, rng, {kind: 1.0}) for _ in range(8)])  # (512, 64)
    orders = make_order(kind, torch.arange(3000), 8).unique(dim=0)  # (different, 64): all of them
    assert len(orders) == different
    for mask in masks:
        count = int(mask.sum())
        assert (orders[:, :count].sort(-1).values == mask.nonzero()[:, 0]).all(1).any()
    assert abs(masks.float().mean().item() - 2 / math.pi) < 0.02


def test_a_share_of_the_masks_is_in_each_order() -> None:
    """Rows of one order are those it would have alone, whatever the other's share; the mask ratios are untouched."""
    shares: list[dict[str, float]] = [{}, {"halton": 0.3}, {"halton": 0.3, "gtr": 0.5}, {"halton": 0.3, "gtr": 0.7}]
    plain, halton, both, all_ordered = (training_masks(512, 64, torch.Generator().manual_seed(5), s) for s in shares)
    some = plain.sum(1) < 56  # of a few known tokens, some are alike in any order
    moved, more, every = ((plain != other).any(1) for other in (halton, both, all_ordered))
    assert 0.2 < moved[some].float().mean() < 0.4 and 0.7 < more[some].float().mean() < 0.9
    assert every[some].float().mean() > 0.99
    assert torch.equal(halton[moved], both[moved])
    assert torch.equal(plain.sum(1), both.sum(1))


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(1, 20))
@settings(max_examples=40)
def test_halton_orders_are_permutations_that_depend_on_their_own_seed_only(seeds: list[int], grid: int) -> None:
    orders = halton_order(torch.tensor(seeds), grid)
    for seed, order in zip(seeds, orders, strict=True):
        assert sorted(order.tolist()) == list(range(grid * grid))
        assert torch.equal(order, halton_order(torch.tensor([seed]), grid)[0])


@given(st.integers(0, 2**63 - 1), st.integers(1, 16))
@settings(max_examples=40)
def test_gtr_decides_one_colour_of_a_checkerboard_first(seed: int, grid: int) -> None:
    seeds = torch.tensor([seed, 7])
    order = make_order("gtr", seeds, grid)
    assert order.sort(1).values.tolist() == [list(range(grid * grid))] * 2
    assert torch.equal(order[:1], make_order("gtr", seeds[:1], grid))
    colours = [(cell // grid + cell % grid) % 2 for cell in reversed(order[0].tolist())]
    assert sum(one != other for one, other in pairwise(colours)) == (grid > 1)


def test_gtr_decides_the_second_half_in_few_steps() -> None:
    """Half of the tokens slowly, the rest in an eighth of the steps, at most four."""
    assert tokens_per_step(32, 64, "gtr")[-5:] == [1, 8, 8, 8, 8]
    assert tokens_per_step(8, 64, "gtr")[-1] == 32
    assert tokens_per_step(64, 256, "gtr")[-4:] == [32] * 4 and max(tokens_per_step(64, 256, "gtr")[:-4]) < 6


def test_halton_spreads_the_first_tokens() -> None:
    """The first 16 tokens of a 16 x 16 grid lie farther from their nearest neighbours than in a random order."""

    def nearest(orders: torch.Tensor) -> float:
        first = orders.flip(1)[:, :16]  # decoding begins at the end
        place = torch.stack([first // 16, first % 16], -1).float()
        apart = (place[:, :, None] - place[:, None]).abs()
        apart = torch.minimum(apart, 16 - apart).square().sum(-1).sqrt() + 99 * torch.eye(16)
        return apart.min(-1).values.mean().item()

    seeds = torch.arange(64)
    assert nearest(halton_order(seeds, 16)) > 1.3 * nearest(random_order(seeds, 256))
    assert len({tuple(order.tolist()) for order in halton_order(seeds, 16)}) > 50


@given(st.integers(1, 250), st.integers(1, 250), st.integers(1, 256))
def test_annealing_is_monotone_from_first_to_last(first: int, last: int, steps: int) -> None:
    counts = [annealed(first, last, step, steps) for step in range(steps)]
    assert counts[0] == first and (steps == 1 or counts[-1] == last)
    assert counts == sorted(counts, reverse=last < first)


@pytest.mark.parametrize("grid", [1, 2, 4, 8, 16])
def test_raster_order_decides_one_token_a_step_from_the_top(grid: int) -> None:
    """The cosine schedule with as many steps as tokens is one token a step, for every row of any seed."""
    total = grid * grid
    assert tokens_per_step(total, total) == [1] * total
    order = make_order("raster", torch.tensor([3, 2**40]), grid)
    assert order.flip(1).tolist() == [list(range(total))] * 2
