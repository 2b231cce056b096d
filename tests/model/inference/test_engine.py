"""The engine against the plain algorithm, and the promise that a seed determines an image.

Tolerance: float32 matrix products of different batch sizes differ in the last bits, and sampling carries that through;
2e-4 is allowed on latents of unit variance. Within one batch size results must be identical to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluid_kernels.head_loop import Rows
from model.inference.engine import Engine, OutOfMemory
from model.inference.generate import generate
from model.inference.prompts import TextPrompts
from model.inference.requests import EngineError, Request, Sampling
from model.networks.autoregressive_model import Fluid
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import context, fitted, random_model, row_request, run_alone, system_config

TOLERANCE = 2e-4
REUSE = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ASKS = st.builds(
    row_request,
    prompt=st.sampled_from(["a red apple", "cat, 3d style", "", "two words and more than fit in the window at all"]),
    seed=st.integers(0, 2**63 - 1),
    num_inference_steps=st.integers(1, 16),
    diffusion_steps=st.integers(1, 6),
    guidance_scale=st.sampled_from([1.0, 0.0, 2.5, 4.0]),
    guidance_schedule=st.sampled_from(["constant", "linear"]),
    temperature=st.sampled_from([0.0, 0.9, 1.0]),
    order=st.sampled_from(["random", "halton", "gtr", "confidence"]),
    diffusion_steps_final=st.sampled_from([None, 1, 3, 8]),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.3, 1.0), (0.0, 0.5), (0.2, 0.2)]),
    top_k=st.sampled_from([None, 1, 5]),
    top_p=st.sampled_from([None, 0.5]),
    negative_prompt=st.sampled_from(["", "rain", "a blue cat"]),
)


@pytest.mark.parametrize("guidance", [("constant", 1.0), ("constant", 3.0), ("linear", 4.0)])
def test_engine_equals_generate(model: Fluid, encoder: HashEncoder, guidance: tuple) -> None:
    schedule, scale = guidance
    seeds, prompts = [3, 2**62, 11], ["a red apple", "a blue cat", "sun"]
    asks = [
        fitted(row_request(p, s, 5, 6, scale, schedule, 0.9), model.config) for p, s in zip(prompts, seeds, strict=True)
    ]
    text, null = context(model, encoder, *prompts), context(model, encoder, "")
    expected = generate(model, text, null, torch.tensor(seeds), asks[0].sampling)
    engine = Engine(model, TextPrompts(model, encoder), 6)
    rows = engine.admit(asks)
    for _ in range(asks[0].sampling.num_inference_steps):
        finished = engine.step()
    assert finished == rows
    for row, wanted in zip(rows, expected, strict=True):
        assert torch.allclose(engine.peek(row), wanted, atol=TOLERANCE)


@pytest.mark.parametrize(
    "fast",
    [
        {"diffusion_steps_final": 1},
        {"order": "halton"},
        {"guidance_interval": (0.4, 1.0)},
        {"diffusion_steps_final": 9, "order": "halton", "guidance_interval": (0.0, 0.6)},
    ],
)
def test_engine_equals_generate_with_every_accelerating_parameter(
    tiny: Fluid, encoder: HashEncoder, engine: Engine, fast: dict
) -> None:
    seeds, prompts = [3, 8], ["a red apple", "sun"]
    text, null = context(tiny, encoder, *prompts), context(tiny, encoder, "")
    expected = generate(tiny, text, null, torch.tensor(seeds), Sampling(5, 6, 3.0, "constant", 1.0, **fast))
    plain = generate(tiny, text, null, torch.tensor(seeds), Sampling(5, 6, 3.0, "constant", 1.0))
    rows = engine.admit([row_request(p, s, 5, 6, **fast) for p, s in zip(prompts, seeds, strict=True)])
    while engine.step() == []:
        pass
    for row, wanted in zip(rows, expected, strict=True):
        assert torch.allclose(engine.peek(row), wanted, atol=TOLERANCE)
    assert not torch.allclose(expected, plain, atol=1e-2)


@given(target=ASKS, others=st.lists(st.tuples(st.integers(0, 6), ASKS), max_size=5), slot=st.integers(0, 5))
@REUSE
def test_an_image_depends_on_its_seed_and_not_on_the_batch(
    model: Fluid, encoder: HashEncoder, target: Request, others: list[tuple[int, Request]], slot: int
) -> None:
    """Rows with any parameters join before, with and after the target, in any slot."""
    target = fitted(target, model.config)
    alone = run_alone(Engine(model, TextPrompts(model, encoder), 1), target)
    engine = Engine(model, TextPrompts(model, encoder), 6)
    fillers = engine.admit([fitted(row_request(seed=i), model.config) for i in range(slot)])  # the target gets another
    (row,) = engine.admit([target])
    for filler in fillers:
        engine.release(filler)
    others = sorted(others, key=lambda pair: pair[0])
    for step in range(20):
        while others and others[0][0] <= step and len(engine._rows) < 6:
            engine.admit([fitted(others.pop(0)[1], model.config)])
        finished = engine.step()
        for done in finished:
            if done != row:
                engine.release(done)
        if row in finished:
            break
    assert torch.allclose(engine.peek(row), alone, atol=TOLERANCE)


@pytest.mark.usefixtures("one_thread")
def test_bit_identical_within_one_batch_size(model: Fluid, encoder: HashEncoder) -> None:
    """The same number of rows and tokens, with other rows and in another slot: not one bit may differ."""
    engine = Engine(model, TextPrompts(model, encoder), 6)

    def run(asks: list[Request], which: int) -> torch.Tensor:
        rows = engine.admit([fitted(ask, model.config) for ask in asks])
        while engine.step() == []:
            pass
        result = engine.peek(rows[which])
        for row in rows:
            engine.release(row)
        return result

    target = row_request(seed=42)
    first = run([target, row_request("cat", 1), row_request("dog", 2)], 0)
    second = run([row_request("sun", 7, temperature=0.5), row_request("moon", 8), target], 2)
    assert torch.equal(first, second)


def test_seed_prompt_and_parameters_change_the_image(engine: Engine) -> None:
    base = run_alone(engine, row_request())
    assert torch.equal(base, run_alone(engine, row_request()))
    for other in (
        row_request(seed=1),
        row_request(seed=2**32),
        row_request("a blue car"),
        row_request(temperature=0.5),
        row_request(guidance_scale=1.0),
    ):
        assert not torch.allclose(base, run_alone(engine, other), atol=1e-2)


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("order", ["random", "confidence"])
def test_a_restored_image_equals_the_uninterrupted_one(model: Fluid, encoder: HashEncoder, order: str, at: int) -> None:
    """Byte for byte, in another engine, from a snapshot taken after any step. In raster order the keys and values of
    past positions are computed again, all at once: their last bits differ."""
    ask = fitted(row_request(num_inference_steps=7, order=order), model.config)
    if order == "confidence" != ask.sampling.order:
        pytest.skip("this system has no such order")
    whole = run_alone(Engine(model, TextPrompts(model, encoder), 2), ask)
    first, second = (Engine(model, TextPrompts(model, encoder), 2) for _ in range(2))
    (row,) = first.admit([ask])
    for _ in range(at):
        first.step()
    row = second.restore(first.snapshot(row))
    while row not in second.step():
        pass
    if model.config.causal:
        torch.testing.assert_close(second.peek(row), whole, atol=TOLERANCE, rtol=0)
    else:
        assert torch.equal(second.peek(row), whole)


def test_peek_shows_decided_tokens_and_zeros(model: Fluid, encoder: HashEncoder) -> None:
    """In raster order, from the top. Discrete tokens are -1 in place of zero."""
    engine = Engine(model, TextPrompts(model, encoder), 2)
    (row,) = engine.admit([fitted(row_request(num_inference_steps=8), model.config)])
    engine.step()
    engine.step()
    early = engine.peek(row)
    decided = early >= 0 if model.config.categorical else early.abs().sum(-1) > 0
    assert 0 < decided.sum() < 16
    if model.config.causal:
        assert decided.nonzero().flatten().tolist() == [0, 1]
    while row not in engine.step():
        pass
    assert torch.equal(engine.peek(row)[decided], early[decided])  # a decided token never changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_inference_steps": 17}, "num_inference_steps is 17; .* 1 to 16"),
        ({"diffusion_steps": 0}, "diffusion_steps is 0; 1 to 1000"),
        ({"guidance_schedule": "cosine"}, "'cosine' is not constant or linear"),
        ({"diffusion_steps_final": 1001}, "diffusion_steps_final is 1001; 1 to 1000"),
        ({"order": "raster"}, "'raster' is not random or halton or gtr"),
        ({"top_k": 3}, "top_k is for discrete tokens"),
        ({"guidance_interval": (0.5, 0.2)}, "not two shares of the steps"),
        ({"seed": -1}, "seed -1 is outside"),
    ],
)
def test_one_invalid_request_rejects_the_whole_admission(engine: Engine, change: dict, message: str) -> None:
    """The valid request beside it is not admitted either, and the engine stays usable."""
    with pytest.raises(EngineError, match=message):
        engine.admit([row_request(), row_request(**change)])
    assert len(engine.admit([row_request()] * 6)) == 6
    with pytest.raises(EngineError, match="0 of 6 are free"):
        engine.admit([row_request()])


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("raster-continuous", {"num_inference_steps": 8}, "16 tokens in raster order, one a step, .* always 16"),
        ("raster-discrete", {"order": "random"}, "'random' is not raster"),
        ("random-discrete", {"diffusion_steps": 5}, "diffusion_steps is always 1"),
        ("random-discrete", {"top_k": 33}, "top_k is 33; this model has 32"),
        ("random-discrete", {"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_a_parameter_that_a_system_has_not_is_rejected(
    encoder: HashEncoder, system: str, change: dict, message: str
) -> None:
    model = random_model(system_config(system))
    ask = fitted(row_request(), model.config)
    engine = Engine(model, TextPrompts(model, encoder), 2)
    with pytest.raises(EngineError, match=message):
        engine.admit([replace(ask, sampling=replace(ask.sampling, **change))])


class TightMemory:
    """A head loop that runs out of memory in the middle of a step, above some number of tokens."""

    def __init__(self, engine: Engine, tokens: int):
        self.inner, self.tokens, self.calls = engine._head, tokens, 0
        self.refuse = -1  # the seed of a row that never fits
        engine._head = self  # type: ignore[assignment]

    def __call__(self, rows: Rows, *rest: Any) -> torch.Tensor:
        self.calls += 1
        if len(rows) > self.tokens or bool((rows.seed == self.refuse).any()):
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried {len(rows)} tokens")
        return self.inner(rows, *rest)


def test_out_of_memory_splits_the_step_and_changes_nothing(model: Fluid, encoder: HashEncoder) -> None:
    asks = [fitted(row_request(seed=i, num_inference_steps=4), model.config) for i in range(5)]
    alone = [run_alone(Engine(model, TextPrompts(model, encoder), 1), ask) for ask in asks]
    engine = Engine(model, TextPrompts(model, encoder), 5)
    # Of up to 7 tokens a row and step: one row at a time, and the last step not at all. In raster order, of one.
    tight = TightMemory(engine, 2 if model.config.causal else 6)
    rows = engine.admit(asks)
    for _ in range(2):
        engine.step()
    assert tight.calls > 2
    tight.tokens = 7
    while not engine.step():
        pass
    for row, expected in zip(rows, alone, strict=True):
        assert torch.allclose(engine.peek(row), expected, atol=TOLERANCE)


def test_a_row_that_never_fits_is_named_and_the_others_advance(tiny: Fluid, encoder: HashEncoder) -> None:
    """The big row decides all 16 tokens in its single step, the others one or two."""
    engine = Engine(tiny, TextPrompts(tiny, encoder), 3)
    TightMemory(engine, 8)
    small, big, other = engine.admit(
        [row_request(num_inference_steps=16), row_request(num_inference_steps=1), row_request("cat")]
    )
    with pytest.raises(OutOfMemory) as caught:
        engine.step()
    assert caught.value.rows == [big]
    assert [engine.progress(row)[0] for row in (small, big, other)] == [1, 0, 1]
    engine.release(big)
    while other not in engine.step():
        pass


def test_a_row_that_finishes_while_another_runs_out_of_memory_is_reported(tiny: Fluid, encoder: HashEncoder) -> None:
    """The exception used to replace the call's result, which named the row, and no later call named it."""
    engine = Engine(tiny, TextPrompts(tiny, encoder), 2)
    tight = TightMemory(engine, 16)
    (short,) = engine.admit([row_request(num_inference_steps=1)])
    (big,) = engine.admit([row_request(num_inference_steps=1, seed=1)])
    tight.refuse = 1
    with pytest.raises(OutOfMemory) as caught:
        engine.step()
    assert caught.value.rows == [big]
    engine.release(big)
    assert engine.step() == [short] and engine.step() == []


def test_other_runtime_errors_are_not_taken_for_out_of_memory(engine: Engine) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    engine._head = broken  # type: ignore[assignment]
    engine.admit([row_request()])
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.step()
