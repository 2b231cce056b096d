"""A negative prompt takes the place of the empty one in the unconditional half of guidance, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.prompts import ConditionCache, TextPrompts, size_in_bytes
from model.inference.requests import Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import context, row_request, run_alone

TOLERANCE = 2e-4  # of test_engine.py


@pytest.fixture
def make(tiny: Fluid, encoder: HashEncoder) -> Callable[[int, bool | None], Engine]:
    return lambda rows, static=None: Engine(tiny, TextPrompts(tiny, encoder), rows, static=static)


def images(engine: Engine, asks: list[Request]) -> list[Tensor]:
    """(N, C) tokens of each request, all admitted together."""
    rows = engine.admit(asks)
    left = set(rows)
    while left:
        left -= set(engine.step())
    found = [engine.peek(row) for row in rows]
    for row in rows:
        engine.release(row)
    return found


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_engine_equals_generate(tiny: Fluid, encoder: HashEncoder, engine: Engine, schedule: str) -> None:
    """Each row steers away from its own text: the oracle gets one condition per row, or one for all."""
    prompts, negatives, seeds = ["a red apple", "sun", "a cat"], ["rain", "", "a blue cat"], [3, 4, 5]
    sampling = Sampling(5, 6, 3.0, schedule, 0.9)
    text, null = context(tiny, encoder, *prompts), context(tiny, encoder, *negatives)
    expected = generate(tiny, text, null, torch.tensor(seeds), sampling)
    asks = [Request(p, s, sampling, negative_prompt=n) for p, n, s in zip(prompts, negatives, seeds, strict=True)]
    for found, wanted in zip(images(engine, asks), expected, strict=True):
        assert torch.allclose(found, wanted, atol=TOLERANCE)
    plain = generate(tiny, text, context(tiny, encoder, ""), torch.tensor(seeds), sampling)
    assert torch.allclose(expected[1], plain[1], atol=TOLERANCE)
    assert not torch.allclose(expected[0], plain[0], atol=1e-2)


@pytest.mark.parametrize("static", [False, True])
def test_an_empty_one_changes_no_bit(make: Callable, static: bool) -> None:
    """The text encoder's empty prompt is the default: passing it, or not, gives the same bytes."""
    one, other = (images(make(3, static), [row_request(seed=i, **given) for i in range(3)])
                  for given in ({}, {"negative_prompt": ""}))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("static", [False, True])
def test_company_with_other_negative_prompts_changes_nothing(make: Callable, static: bool) -> None:
    """The same image alone or among rows with other negative prompts, without one, and without guidance."""
    ask = row_request(seed=9, negative_prompt="rain")
    others = [row_request(seed=1, negative_prompt="a blue cat"), row_request(seed=2), row_request(guidance_scale=1.0)]
    [alone] = images(make(1, static), [ask])
    for place in range(4):
        together = [*others[:place], ask, *others[place:]]
        assert torch.allclose(images(make(4, static), together)[place], alone, atol=TOLERANCE)
    assert not torch.allclose(alone, run_alone(make(1, static), row_request(seed=9)), atol=1e-2)


def test_without_guidance_it_has_no_effect(engine: Engine) -> None:
    """The service says so in a warning; the bits are those of a request without it."""
    for unguided in ({"guidance_scale": 1.0}, {"guidance_interval": (0.5, 0.5)}):
        plain = run_alone(engine, row_request(**unguided))
        assert torch.equal(run_alone(engine, row_request(negative_prompt="rain", **unguided)), plain)


@pytest.mark.parametrize("at", [1, 3])
def test_a_restored_image_keeps_its_negative_prompt(make: Callable, at: int) -> None:
    ask = row_request(negative_prompt="rain")
    whole = run_alone(make(2, None), ask)
    first, second = make(2, None), make(2, None)
    (row,) = first.admit([ask])
    for _ in range(at):
        first.step()
    resumed = second.restore(first.snapshot(row))
    while resumed not in second.step():
        pass
    assert torch.equal(second.peek(resumed), whole)


def test_the_cache_of_conditions_is_bounded_by_bytes(tiny: Fluid, encoder: HashEncoder) -> None:
    """256 prompts of the 10.5B preset would be 17 GB."""
    made = []

    class Counting(TextPrompts):
        def __call__(self, prompt: str):  # type: ignore[no-untyped-def]
            made.append(prompt)
            return super().__call__(prompt)

    one = size_in_bytes(context(tiny, encoder, "x"))
    cache = ConditionCache(Counting(tiny, encoder), kept_bytes=2 * one)
    for prompt in ("a", "b", "a", "c", "a", "b"):  # "b" is the least recently used when "c" comes
        assert torch.equal(cache(prompt).mask, context(tiny, encoder, prompt).mask)
        assert cache._bytes == sum(map(size_in_bytes, cache._found.values())) <= 2 * one
    assert made == ["a", "b", "c", "b"]
    small = ConditionCache(Counting(tiny, encoder), kept_bytes=one - 1)
    assert len(small("a")) == 1 and not small._found and small._bytes == 0


def test_the_prompt_of_a_row_is_not_encoded_again(tiny: Fluid, encoder: HashEncoder, engine: Engine) -> None:
    """A cache smaller than one condition holds nothing, and encoding is the dearest part of admission."""
    engine._conditions.kept_bytes = 0
    (row,) = engine.admit([replace(row_request(), prompt="two words")])
    engine._conditions.conditioner = None  # type: ignore[assignment]
    assert engine.prompt_tokens("two words") == 3
    engine.release(row)
