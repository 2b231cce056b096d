"""Images that start from known tokens: the engine against the plain algorithm, alone, resumed and in a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.known_tokens import KnownTokens, encode_pixels, kept_mask, masked_tokens
from model.inference.orders import make_order
from model.inference.prompts import TextPrompts
from model.inference.requests import EngineError, Request
from model.inference.row_state import Snapshot
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import to_pixels
from model.presets import PRESETS
from tests.model.conftest import context, fitted, random_model, row_request, run_alone, some_tokens, system_config

TOLERANCE = 2e-4
REUSE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some(model: Fluid, new: list[int], seed: int = 0) -> KnownTokens:
    """Random tokens, kept but for the positions `new`."""
    kept = torch.ones(model.config.tokens, dtype=torch.bool)
    kept[new] = False
    torch.manual_seed(seed)
    return KnownTokens(some_tokens(model.config), kept)


def finished_tokens(engine: Engine, ask: Request, start: KnownTokens) -> torch.Tensor:
    (row,) = engine.admit([ask], [start])
    while row not in engine.step():
        pass
    tokens = engine.peek(row)
    engine.release(row)
    return tokens


@pytest.mark.parametrize("order", ["random", "halton", "gtr", "confidence"])
@pytest.mark.parametrize("guidance", [("constant", 1.0), ("linear", 4.0)])
def test_engine_equals_generate(model: Fluid, encoder: HashEncoder, order: str, guidance: tuple[str, float]) -> None:
    schedule, scale = guidance
    starts = [some(model, [0, 3, 4, 9, 15], 1), some(model, [1, 2, 5, 10, 11], 2)]
    prompts, seeds = ["a red apple", "sun"], [3, 2**62]
    both = KnownTokens(torch.stack([s.tokens for s in starts]), torch.stack([s.kept for s in starts]))
    asks = [
        fitted(row_request(p, s, 3, 6, scale, schedule, 0.9, order), model.config)
        for p, s in zip(prompts, seeds, strict=True)
    ]
    if order not in ("random", asks[0].sampling.order):
        pytest.skip("this system has no such order")
    text, null = context(model, encoder, *prompts), context(model, encoder, "")
    expected = generate(model, text, null, torch.tensor(seeds), asks[0].sampling, both)
    engine = Engine(model, TextPrompts(model, encoder), 2)
    rows = engine.admit(asks, starts)
    finished: list[int] = []
    while len(finished) < 2:  # in raster order at different steps: a kept top is not walked over
        finished += engine.step()
    for row, wanted, start in zip(rows, expected, starts, strict=True):
        assert torch.allclose(engine.peek(row), wanted, atol=TOLERANCE)
        assert torch.equal(engine.peek(row)[start.kept], start.tokens[start.kept])


@given(
    new=st.sets(st.integers(0, 15), min_size=1),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 16),
    stop=st.integers(0, 15),
)
@REUSE
def test_an_edit_depends_on_its_seed_only_in_a_batch_and_resumed(
    model: Fluid, encoder: HashEncoder, new: set[int], seed: int, steps: int, stop: int
) -> None:
    """This holds for any mask, among other rows, and when resumed from any step on another engine."""
    start = some(model, sorted(new))
    order = "confidence" if seed % 2 else "random"
    ask = fitted(row_request(seed=seed, num_inference_steps=min(steps, len(new)), order=order), model.config)
    alone = finished_tokens(Engine(model, TextPrompts(model, encoder), 1), ask, start)
    engine = Engine(model, TextPrompts(model, encoder), 4)
    asks = [ask, *(fitted(other, model.config) for other in (row_request(seed=1), row_request("sun", 2, 2)))]
    row, _, _ = engine.admit(asks, [start, None, some(model, [7, 8])])
    for _ in range(min(stop, ask.sampling.num_inference_steps - 1)):
        engine.step()
    saved = engine.snapshot(row)
    other = Engine(model, TextPrompts(model, encoder), 2)
    again = other.restore(Snapshot(saved.request, saved.step, saved.tokens, saved.kept))
    for each, place in ((engine, row), (other, again)):
        while each.progress(place)[0] < ask.sampling.num_inference_steps:
            each.step()
        assert torch.allclose(each.peek(place), alone, atol=TOLERANCE)


def test_values_under_the_mask_are_never_read(model: Fluid, encoder: HashEncoder) -> None:
    """An edit must not depend on what it replaces."""
    engine = Engine(model, TextPrompts(model, encoder), 2)
    start = some(model, [0, 5, 6])
    other = KnownTokens(masked_tokens(start, torch.full_like(start.tokens, 31)), start.kept)
    ask = fitted(row_request(num_inference_steps=2), model.config)
    assert torch.equal(finished_tokens(engine, ask, start), finished_tokens(engine, ask, other))


def test_a_count_keeps_the_tokens_that_the_order_decides_first(tiny: Fluid, engine: Engine) -> None:
    """The last 12 of the order; they come out unchanged, as if the image had been generated that far."""
    ask = row_request(seed=9, order="halton")
    tokens = run_alone(engine, ask)
    order = make_order(ask.sampling.order, torch.tensor([ask.seed]), tiny.config.grid)[0]
    kept = kept_mask(12, order)
    assert kept.sum() == 12
    assert kept[order[-12:]].all()
    again = finished_tokens(engine, ask, KnownTokens(tokens, kept))
    assert torch.equal(again[kept], tokens[kept])


def test_raster_order_begins_behind_the_kept_top(encoder: HashEncoder) -> None:
    """Kept tokens further down are walked over, one a step, and come out as they were."""
    model = random_model(system_config("raster-discrete"))
    engine = Engine(model, TextPrompts(model, encoder), 2)
    start = some(model, [6, 7, 12])
    (row,) = engine.admit([fitted(row_request(), model.config)], [start])
    assert engine.progress(row) == (6, 16)
    steps = 0
    while row not in engine.step():
        steps += 1
    assert steps == 9 and torch.equal(engine.peek(row)[start.kept], start.tokens[start.kept])


def test_unusable_masks_are_rejected(tiny: Fluid, engine: Engine) -> None:
    order = torch.arange(16)
    for kept in (16, -1, bytes(15), b"\1" * 16):
        with pytest.raises(EngineError):
            kept_mask(kept, order)
    with pytest.raises(EngineError, match="only 2 tokens are left"):
        engine.admit([row_request(num_inference_steps=3)], [some(tiny, [0, 1])])
    assert not engine._rows


def test_encoded_bytes_are_the_tokenizers_tokens() -> None:
    """Bytes in raster order; tokens in the order of the grid."""
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    tokenizer = new_tokenizer(config).eval()
    side = config.image_size
    image = torch.randint(256, (1, side, side, 3), dtype=torch.uint8)
    with torch.inference_mode():
        tokens = encode_pixels(image.numpy().tobytes(), tokenizer, config, torch.device("cpu"))
        assert torch.equal(tokens, tokenizer.encode(to_pixels(image))[0])
    with pytest.raises(EngineError, match="bytes"):
        encode_pixels(b"abc", tokenizer, config, torch.device("cpu"))
