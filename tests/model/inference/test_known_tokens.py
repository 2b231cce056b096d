"""Pictures that start from given tokens: the engine against the plain algorithm, alone, resumed and in company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.known_tokens import Given, encode_pixels, staying
from model.inference.orders import make_order
from model.inference.prompts import TextPrompts
from model.inference.requests import EngineError, Request, Sampling
from model.inference.step_plan import Snapshot
from model.networks.random_order_model import Fluid
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import new_tokenizer, to_pixels
from model.presets import PRESETS
from tests.model.conftest import context, row_request, run_alone

TOLERANCE = 2e-4
REUSE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some(model: Fluid, new: list[int], seed: int = 0) -> Given:
    """Random tokens, of which all but the positions `new` stay."""
    stays = torch.ones(model.config.tokens, dtype=torch.bool)
    stays[new] = False
    generator = torch.Generator().manual_seed(seed)
    return Given(torch.randn(model.config.tokens, model.config.channels, generator=generator), stays)


def drawn(engine: Engine, ask: Request, start: Given) -> torch.Tensor:
    (row,) = engine.admit([ask], [start])
    while row not in engine.step():
        pass
    tokens = engine.peek(row)
    engine.release(row)
    return tokens


@pytest.mark.parametrize("order", ["random", "halton"])
@pytest.mark.parametrize("guidance", [("constant", 1.0), ("linear", 4.0)])
def test_engine_equals_generate(
    tiny: Fluid, encoder: HashEncoder, engine: Engine, order: str, guidance: tuple[str, float]
) -> None:
    schedule, scale = guidance
    starts = [some(tiny, [0, 3, 4, 9, 15], 1), some(tiny, [1, 2, 5, 10, 11], 2)]
    prompts, seeds = ["a red apple", "sun"], [3, 2**62]
    both = Given(torch.stack([s.tokens for s in starts]), torch.stack([s.stays for s in starts]))
    expected = generate(
        tiny, context(tiny, encoder, *prompts), context(tiny, encoder, ""), torch.tensor(seeds),
        Sampling(3, 6, scale, schedule, 0.9, order), both,
    )  # fmt: skip
    asks = [row_request(p, s, 3, 6, scale, schedule, 0.9, order) for p, s in zip(prompts, seeds, strict=True)]
    rows = engine.admit(asks, starts)
    while engine.step() == []:
        pass
    for row, wanted, start in zip(rows, expected, starts, strict=True):
        assert torch.allclose(engine.peek(row), wanted, atol=TOLERANCE)
        assert torch.equal(engine.peek(row)[start.stays], start.tokens[start.stays])


@given(
    new=st.sets(st.integers(0, 15), min_size=1),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 16),
    stop=st.integers(0, 15),
)
@REUSE
def test_an_edit_is_its_seed_alone_or_resumed(
    tiny: Fluid, encoder: HashEncoder, new: set[int], seed: int, steps: int, stop: int
) -> None:
    """Whatever is masked, beside whatever else, and gone on with from any step on another engine."""
    start = some(tiny, sorted(new))
    ask = row_request(seed=seed, num_inference_steps=min(steps, len(new)))
    alone = drawn(Engine(tiny, TextPrompts(tiny, encoder), 1), ask, start)
    engine = Engine(tiny, TextPrompts(tiny, encoder), 4)
    row, _, _ = engine.admit([ask, row_request(seed=1), row_request("sun", 2, 2)], [start, None, some(tiny, [7, 8])])
    for _ in range(min(stop, ask.sampling.num_inference_steps - 1)):
        engine.step()
    kept = engine.snapshot(row)
    other = Engine(tiny, TextPrompts(tiny, encoder), 2)
    again = other.restore(Snapshot(kept.request, kept.step, kept.tokens, kept.stays))
    for each, place in ((engine, row), (other, again)):
        while each.progress(place)[0] < ask.sampling.num_inference_steps:
            each.step()
        assert torch.allclose(each.peek(place), alone, atol=TOLERANCE)


def test_what_is_masked_is_not_looked_at(tiny: Fluid, engine: Engine) -> None:
    """An edit must not depend on what was there before."""
    start = some(tiny, [0, 5, 6])
    other = Given(torch.where(start.stays[:, None], start.tokens, 100.0), start.stays)
    ask = row_request(num_inference_steps=2)
    assert torch.equal(drawn(engine, ask, start), drawn(engine, ask, other))


def test_all_given_but_one_step_less_is_the_same_picture_going_on(tiny: Fluid, engine: Engine) -> None:
    """A number keeps what the order decides first: with the tokens of the picture itself, nothing new can tell."""
    ask = row_request(seed=9, order="halton")
    tokens = run_alone(engine, ask)
    order = make_order(ask.sampling.order, torch.tensor([ask.seed]), tiny.config.grid)[0]
    stays = staying(12, order)
    assert stays.sum() == 12
    assert stays[order[-12:]].all()
    again = drawn(engine, ask, Given(tokens, stays))
    assert torch.equal(again[stays], tokens[stays])


def test_what_cannot_be_started_from_is_said(tiny: Fluid, engine: Engine) -> None:
    order = torch.arange(16)
    for stays in (16, -1, bytes(15), b"\1" * 16):
        with pytest.raises(EngineError):
            staying(stays, order)
    with pytest.raises(EngineError, match="only 2 tokens are left"):
        engine.admit([row_request(num_inference_steps=3)], [some(tiny, [0, 1])])
    assert not engine._rows


def test_encoding_is_the_tokenizers() -> None:
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
