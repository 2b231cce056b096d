"""Images that start from known tokens: the engine against the plain algorithm, alone, resumed and in a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.inference.engine import Engine
from model.inference.generate import generate
from model.inference.known_tokens import KnownTokens, encode_pixels, kept_mask
from model.inference.orders import make_order
from model.inference.prompts import TextPrompts
from model.inference.requests import EngineError, Request, Sampling
from model.inference.row_state import Snapshot
from model.networks.autoregressive_model import Fluid
from model.networks.factory import new_tokenizer
from model.networks.text_encoder import HashEncoder
from model.networks.tokenizer import to_pixels
from model.presets import PRESETS
from tests.model.conftest import context, row_request, run_alone

TOLERANCE = 2e-4
REUSE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some(model: Fluid, new: list[int], seed: int = 0) -> KnownTokens:
    """Random tokens, kept but for the positions `new`."""
    kept = torch.ones(model.config.tokens, dtype=torch.bool)
    kept[new] = False
    generator = torch.Generator().manual_seed(seed)
    return KnownTokens(torch.randn(model.config.tokens, model.config.channels, generator=generator), kept)


def finished_tokens(engine: Engine, ask: Request, start: KnownTokens) -> torch.Tensor:
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
    both = KnownTokens(torch.stack([s.tokens for s in starts]), torch.stack([s.kept for s in starts]))
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
        assert torch.equal(engine.peek(row)[start.kept], start.tokens[start.kept])


@given(
    new=st.sets(st.integers(0, 15), min_size=1),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 16),
    stop=st.integers(0, 15),
)
@REUSE
def test_an_edit_depends_on_its_seed_only_in_a_batch_and_resumed(
    tiny: Fluid, encoder: HashEncoder, new: set[int], seed: int, steps: int, stop: int
) -> None:
    """This holds for any mask, among other rows, and when resumed from any step on another engine."""
    start = some(tiny, sorted(new))
    ask = row_request(seed=seed, num_inference_steps=min(steps, len(new)))
    alone = finished_tokens(Engine(tiny, TextPrompts(tiny, encoder), 1), ask, start)
    engine = Engine(tiny, TextPrompts(tiny, encoder), 4)
    row, _, _ = engine.admit([ask, row_request(seed=1), row_request("sun", 2, 2)], [start, None, some(tiny, [7, 8])])
    for _ in range(min(stop, ask.sampling.num_inference_steps - 1)):
        engine.step()
    saved = engine.snapshot(row)
    other = Engine(tiny, TextPrompts(tiny, encoder), 2)
    again = other.restore(Snapshot(saved.request, saved.step, saved.tokens, saved.kept))
    for each, place in ((engine, row), (other, again)):
        while each.progress(place)[0] < ask.sampling.num_inference_steps:
            each.step()
        assert torch.allclose(each.peek(place), alone, atol=TOLERANCE)


def test_values_under_the_mask_are_never_read(tiny: Fluid, engine: Engine) -> None:
    """An edit must not depend on what it replaces."""
    start = some(tiny, [0, 5, 6])
    other = KnownTokens(torch.where(start.kept[:, None], start.tokens, 100.0), start.kept)
    ask = row_request(num_inference_steps=2)
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
